"""A probe's file: safetensors with one JSON header. Nothing is ever unpickled, torch not needed.

In format 3 the header lists the terms of the score, of the heads and of the confidence, each with
what it reads; its weights are the tensors named after its place: ``terms.0.weight``,
``heads.16.terms.1.gate``, ``confidence.bias``.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from qprobe.errors import ProbeFileError
from qprobe.files import write_file
from qprobe.probe.confidence import Confidence, read_calibration
from qprobe.probe.foreign import name_content, name_tensors
from qprobe.probe.former import read_former
from qprobe.probe.header import check_fields, read_lists
from qprobe.probe.probe import Endpoint, Probe, ProbeInfo
from qprobe.probe.reading import Reading
from qprobe.probe.tensors import Floats, Tensors
from qprobe.probe.terms import GateTerm, StateTerm, Terms

__all__ = ["load_probe", "parse_probe", "save_probe"]

Json = dict[str, Any]

FORMAT_VERSION = 3
_HEADER_KEY = "qprobe"
_OWN_FIELDS = {"terms", "heads", "confidence"}
_TERM_FIELDS = {
    "state": {"layer", "pooling", "window"},
    "gate": {"layer", "segments"},
    "numbers": {"names"},
}


def save_probe(probe: Probe, path: Path | str) -> None:
    """Write a probe to one file, whole or not at all; an older file is replaced.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    tensors: dict[str, Floats] = {}
    header = {
        "format_version": FORMAT_VERSION,
        **asdict(probe.info),
        "terms": _put(tensors, "", probe.terms),
        "heads": {
            str(tokens): _put(tensors, f"heads.{tokens}.", head)
            for tokens, head in probe.heads.items()
        },
        "confidence": None,
    }
    if probe.confidence is not None:
        own = probe.confidence.terms
        header["confidence"] = {
            "calibration": probe.confidence.calibration.to_json(),
            "terms": None if own is None else _put(tensors, "confidence.", own),
        }
    data = save(tensors, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})
    write_file(Path(path), data)


def _put(tensors: dict[str, Floats], prefix: str, terms: Terms) -> list[Json]:
    """Add the weights of terms to tensors; return what the header says of them."""
    described: list[Json] = []

    def add(what: Json, **weights: ArrayLike) -> None:
        for name, values in weights.items():
            array = np.ascontiguousarray(values, dtype=np.float32)
            tensors[f"{prefix}terms.{len(described)}.{name}"] = array
        described.append(what)

    for state in terms.states:
        add({"kind": "state", **asdict(state.reading)}, weight=state.weight)
    for gate in terms.gates:
        add(
            {"kind": "gate", "layer": gate.layer, "segments": list(gate.segments)},
            gate=gate.gate,
            value=gate.value,
            biases=[gate.gate_bias, gate.value_bias],
        )
    if terms.numbers:
        add(
            {"kind": "numbers", "names": list(terms.numbers)},
            weight=list(terms.numbers.values()),
        )
    tensors[f"{prefix}bias"] = np.array([terms.bias], dtype=np.float32)
    return described


def load_probe(path: Path | str) -> Probe:
    """Read a probe's file and check every field of it.

    Raises:
        ProbeFileError: The file is missing, torn or not a probe, or a field is not valid.
    """
    path = Path(path)
    if path.is_dir():
        kind = " of a LoRA adapter" if (path / "adapter_config.json").exists() else ""
        raise ProbeFileError("file", f"{str(path)!r} is a folder{kind}, a probe's file is wanted")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProbeFileError("file", f"{str(path)!r} cannot be read: {error.strerror}") from error
    try:
        return parse_probe(data)
    except ProbeFileError as error:
        raise ProbeFileError(error.field, f"{error.message}, in {str(path)!r}") from error


def parse_probe(data: bytes) -> Probe:
    """Read a probe from the bytes of its file and check every field of it.

    Memory and time are bounded by the length of the data, whatever it declares.

    Raises:
        ProbeFileError: The data is torn or not a probe, or a field is not valid.
    """
    try:
        found = dict(deserialize(data))  # type: ignore[no-untyped-call]  # it has no types
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        kind = name_content(data)
        said = str(error) if kind is None else f"it is {kind}"
        raise ProbeFileError("file", f"is not a readable probe: {said}") from error
    # safetensors gives the metadata of files only. It has just read this header: a length of 8
    # bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if _HEADER_KEY not in metadata:
        raise ProbeFileError("file", f"has no probe's header: {name_tensors(found)}")
    header = _read_header(metadata[_HEADER_KEY])
    tensors = Tensors(found)
    version = header.pop("format_version", None)
    if isinstance(version, bool) or version not in (1, 2, FORMAT_VERSION):
        raise ProbeFileError("format_version", f"must be 1 to {FORMAT_VERSION}, got {version!r}")
    probe = read_former(header, tensors, version) if version < 3 else _read(header, tensors)
    tensors.check_empty()
    try:
        # As a server lists it: no NaN in free fields, no half of a surrogate pair.
        json.dumps(asdict(probe.info), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ProbeFileError("header", f"cannot be written as JSON: {error}") from error
    return probe


def _read_header(text: str) -> Json:
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProbeFileError("header", f"is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProbeFileError("header", f"must be a JSON object, got {type(header).__name__}")
    return header


def _read(header: Json, tensors: Tensors) -> Probe:
    check_fields("", header, {each.name for each in fields(ProbeInfo)} | _OWN_FIELDS)
    own = {name: header.pop(name) for name in _OWN_FIELDS}
    info = ProbeInfo(**read_lists(header) | {"endpoint": _read_endpoint(header["endpoint"])})
    if not isinstance(own["heads"], dict) or sorted(own["heads"]) != sorted(
        map(str, info.checkpoints)
    ):
        raise ProbeFileError(
            "heads", f"must be an object of one head a checkpoint, got {own['heads']!r:.80}"
        )
    heads = {
        each: _take(tensors, f"heads.{each}.", own["heads"][str(each)]) for each in info.checkpoints
    }
    terms = _take(tensors, "", own["terms"])
    return Probe(info, terms, heads, _read_confidence(own["confidence"], tensors))


def _read_confidence(value: object, tensors: Tensors) -> Confidence | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ProbeFileError("confidence", f"must be an object or null, got {value!r}")
    check_fields("confidence.", value, {"calibration", "terms"})
    terms = value["terms"]
    return Confidence(
        read_calibration(value["calibration"]),
        None if terms is None else _take(tensors, "confidence.", terms),
    )


def _read_endpoint(value: object) -> Endpoint | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ProbeFileError("endpoint", f"must be an object or null, got {value!r}")
    check_fields("endpoint.", value, {"template", "normalize"})
    return Endpoint(**value)


def _take(tensors: Tensors, prefix: str, described: object) -> Terms:
    """Return the terms that a header describes, with their weights, which are gone from tensors."""
    place = f"{prefix}terms"
    if not isinstance(described, list):
        raise ProbeFileError(place, f"must be a list, got {described!r}")
    states: list[StateTerm] = []
    gates: list[GateTerm] = []
    numbers: dict[str, float] = {}
    for index, each in enumerate(described):
        at = f"{place}.{index}"
        kind = each.get("kind") if isinstance(each, dict) else None
        if not isinstance(kind, str) or kind not in _TERM_FIELDS:
            raise ProbeFileError(
                f"{at}.kind", f"must be one of {', '.join(_TERM_FIELDS)}, got {kind!r}"
            )
        given = {name: value for name, value in each.items() if name != "kind"}
        check_fields(f"{at}.", given, _TERM_FIELDS[kind])
        if kind == "state":
            states.append(StateTerm(Reading(**given), tensors.take(f"{at}.weight")))
        elif kind == "gate":
            gates.append(_take_gate(tensors, at, given))
        else:
            more = _take_numbers(tensors, at, given["names"])
            for name in more:
                if name in numbers:
                    raise ProbeFileError(
                        place, f"must each read something else, got {name!r} twice"
                    )
            numbers |= more
    (bias,) = tensors.take(f"{prefix}bias", size=1).tolist()
    return Terms(tuple(states), tuple(gates), numbers, bias)


def _take_gate(tensors: Tensors, place: str, given: Json) -> GateTerm:
    if not isinstance(given["segments"], list):
        raise ProbeFileError(f"{place}.segments", f"must be a list, got {given['segments']!r}")
    gate_bias, value_bias = tensors.take(f"{place}.biases", size=2).tolist()
    return GateTerm(
        given["layer"],
        tuple(given["segments"]),
        tensors.take(f"{place}.gate"),
        tensors.take(f"{place}.value"),
        gate_bias,
        value_bias,
    )


def _take_numbers(tensors: Tensors, place: str, names: object) -> dict[str, float]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProbeFileError(f"{place}.names", f"must be a list of names, got {names!r}")
    if len(set(names)) < len(names):
        raise ProbeFileError(f"{place}.names", f"must be different, got {names!r}")
    weight = tensors.take(f"{place}.weight", size=len(names))
    return dict(zip(names, weight.tolist(), strict=True))
