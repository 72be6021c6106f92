"""A probe's file: safetensors with one JSON header. Nothing is ever unpickled."""

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qprobe.errors import ProbeFileError
from qprobe.probe import Probe, ProbeInfo

__all__ = ["load_probe", "parse_probe", "save_probe"]

FORMAT_VERSION = 1
_HEADER_KEY = "qprobe"
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_probe(probe: Probe, path: Path) -> None:
    """Write a probe to one file, whole or not at all; an older file is replaced.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    tensors = {}
    for index, (weight, bias) in enumerate(probe.layers):
        tensors[f"{index}.weight"] = weight.contiguous()
        tensors[f"{index}.bias"] = bias.contiguous()
    header = {"format_version": FORMAT_VERSION, **asdict(probe.info)}
    data = save(tensors, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:  # an interrupt too must leave no temporary file behind
        Path(temporary).unlink(missing_ok=True)
        raise


def load_probe(path: Path) -> Probe:
    """Read a probe's file and check every field of it.

    Raises:
        ProbeFileError: The file is missing, torn or not a probe, or a field is not valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProbeFileError("file", f"{str(path)!r} is not readable: {error}") from error
    return parse_probe(data)


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
        raise ProbeFileError("file", f"is not a readable probe: {error}") from error
    # safetensors gives the metadata of files only. It has just read this header: a length of 8
    # bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return Probe(_read_header(metadata), _read_layers(tensors))


def _read_header(metadata: dict[str, str]) -> ProbeInfo:
    if _HEADER_KEY not in metadata:
        raise ProbeFileError("file", "holds tensors but no probe header")
    try:
        header: Any = json.loads(metadata[_HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise ProbeFileError("header", f"is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProbeFileError("header", f"must be a JSON object, got {type(header).__name__}")
    version = header.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ProbeFileError("format_version", f"must be {FORMAT_VERSION}, got {version!r}")
    known = {each.name for each in fields(ProbeInfo)}
    for name in sorted(header.keys() - known):
        raise ProbeFileError(name, "is not a field of a probe's header")
    for name in sorted(known - header.keys()):
        raise ProbeFileError(name, "is missing from the probe's header")
    info = ProbeInfo(**header)
    try:
        # As a server lists it: no NaN in free fields, no half of a surrogate pair.
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ProbeFileError("header", f"cannot be written as JSON: {error}") from error
    return info


def _read_layers(tensors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    layers: list[tuple[Tensor, Tensor]] = []
    while f"{len(layers)}.weight" in tensors and f"{len(layers)}.bias" in tensors:
        index = len(layers)
        layers.append((tensors.pop(f"{index}.weight"), tensors.pop(f"{index}.bias")))
        for name, tensor in zip(("weight", "bias"), layers[-1], strict=True):
            if tensor.dtype not in _FLOAT_DTYPES:
                raise ProbeFileError(
                    f"tensors.{index}.{name}", f"must be of a float dtype, got {tensor.dtype}"
                )
    for name in sorted(tensors):
        raise ProbeFileError(f"tensors.{name}", "is not a tensor of a probe")
    return layers
