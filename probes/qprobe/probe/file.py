"""A probe's file: safetensors with one JSON header. Nothing is ever unpickled."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qprobe.errors import ProbeFileError
from qprobe.files import write_file
from qprobe.probe.foreign import name_content, name_tensors
from qprobe.probe.network import Probe, ProbeInfo
from qprobe.probe.schedule import Step

__all__ = ["load_probe", "parse_probe", "save_probe"]

# Version 1 had no checkpoints and no schedule.
FORMAT_VERSION = 2
_NEW_FIELDS = {"checkpoints", "schedule"}
_HEADER_KEY = "qprobe"
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_probe(probe: Probe, path: Path | str) -> None:
    """Write a probe to one file, whole or not at all; an older file is replaced.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    tensors = {}
    for index, (weight, bias) in enumerate(probe.layers):
        tensors[f"{index}.weight"] = weight.contiguous()
        tensors[f"{index}.bias"] = bias.contiguous()
    for tokens, (weight, bias) in probe.heads.items():
        tensors[f"checkpoint.{tokens}.weight"] = weight.contiguous()
        tensors[f"checkpoint.{tokens}.bias"] = bias.contiguous()
    header = {"format_version": FORMAT_VERSION, **asdict(probe.info)}
    data = save(tensors, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})
    write_file(Path(path), data)


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
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        # The last four: dtypes that torch does not have, and shapes that it does not take.
        kind = name_content(data)
        said = str(error) if kind is None else f"it is {kind}"
        raise ProbeFileError("file", f"is not a readable probe: {said}") from error
    # safetensors gives the metadata of files only. It has just read this header: a length of 8
    # bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if _HEADER_KEY not in metadata:
        raise ProbeFileError("file", f"has no probe's header: {name_tensors(tensors)}")
    info = _read_header(metadata[_HEADER_KEY])
    heads = {each: _pop_layer(tensors, f"checkpoint.{each}") for each in info.checkpoints}
    layers: list[tuple[Tensor, Tensor]] = []
    while f"{len(layers)}.weight" in tensors:
        layers.append(_pop_layer(tensors, str(len(layers))))
    for name in sorted(tensors):
        raise ProbeFileError(f"tensors.{name}", "is not a tensor of a probe")
    return Probe(info, layers, heads)


def _read_header(text: str) -> ProbeInfo:
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProbeFileError("header", f"is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProbeFileError("header", f"must be a JSON object, got {type(header).__name__}")
    version = header.pop("format_version", None)
    if version not in (1, FORMAT_VERSION) or isinstance(version, bool):
        raise ProbeFileError("format_version", f"must be 1 or {FORMAT_VERSION}, got {version!r}")
    known = {each.name for each in fields(ProbeInfo)}
    if version == 1:
        known -= _NEW_FIELDS
    for name in sorted(header.keys() - known):
        raise ProbeFileError(name, "is not a field of a probe's header")
    for name in sorted(known - header.keys()):
        raise ProbeFileError(name, "is missing from the probe's header")
    info = ProbeInfo(**(header if version == 1 else _read_lists(header)))
    try:
        # As a server lists it: no NaN in free fields, no half of a surrogate pair.
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ProbeFileError("header", f"cannot be written as JSON: {error}") from error
    return info


def _read_lists(header: dict[str, Any]) -> dict[str, Any]:
    """Return a header with its lists as ``ProbeInfo`` takes them; it checks what they hold."""
    for name in _NEW_FIELDS:
        if not isinstance(header[name], list):
            raise ProbeFileError(name, f"must be a list, got {header[name]!r}")
    steps = []
    for index, step in enumerate(header["schedule"]):
        if not isinstance(step, dict) or step.keys() != {"tokens", "keep"}:
            raise ProbeFileError(
                f"schedule.{index}", f"must be an object of tokens and keep, got {step!r}"
            )
        steps.append(Step(**step))
    return {**header, "checkpoints": tuple(header["checkpoints"]), "schedule": tuple(steps)}


def _pop_layer(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    found = []
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in tensors:
            raise ProbeFileError(f"tensors.{name}.{part}", "is missing")
        tensor = tensors.pop(f"{name}.{part}")
        if tensor.dtype not in _FLOAT_DTYPES:
            raise ProbeFileError(
                f"tensors.{name}.{part}", f"must be of a float dtype, got {tensor.dtype}"
            )
        found.append(tensor)
    return found[0], found[1]
