"""A probe's file: safetensors with one JSON header. Nothing is ever unpickled."""

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qprobe.errors import ProbeFileError
from qprobe.probe import Probe, ProbeInfo

__all__ = ["load_probe", "save_probe"]

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
    """Read a probe and check every field of it.

    Raises:
        ProbeFileError: The file is missing, torn or not a probe, or a field is not valid.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except (SafetensorError, OSError) as error:
        raise ProbeFileError("file", f"{str(path)!r} is not a readable probe: {error}") from error
    info = _read_header(metadata)
    return Probe(info, _read_layers(tensors))


def _read_header(metadata: dict[str, str]) -> ProbeInfo:
    if _HEADER_KEY not in metadata:
        raise ProbeFileError("file", "holds tensors but no probe header")
    try:
        header: Any = json.loads(metadata[_HEADER_KEY])
    except (json.JSONDecodeError, RecursionError) as error:
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
    return ProbeInfo(**header)


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
