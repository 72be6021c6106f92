"""Probes of formats 1 and 2: one linear network on one reading, and heads on the same layer."""

from typing import Any

from qprobe.errors import ProbeFileError
from qprobe.probe.header import check_fields, read_lists
from qprobe.probe.probe import Probe, ProbeInfo
from qprobe.probe.reading import Reading
from qprobe.probe.tensors import Tensors
from qprobe.probe.terms import Terms

__all__ = ["read_former"]

Json = dict[str, Any]
_READING = {"layer", "pooling", "window"}
# Version 1 had no checkpoints and no schedule.
_SINCE_2 = {"checkpoints", "schedule"}
_FIELDS = {"base_model", "hidden_size", "num_layers", "objective", "k", "beta"} | _READING
_FREE = {"training", "licence"}


def read_former(header: Json, tensors: Tensors, version: int) -> Probe:
    """Return the probe of a header of format 1 or 2.

    Args:
        header: Without its version.
        tensors: Loses those of the probe.
        version: 1 or 2.

    Raises:
        ProbeFileError: A field is not valid, or the probe is an MLP.
    """
    check_fields("", header, _FIELDS | _FREE | (_SINCE_2 if version == 2 else set()))
    reading = Reading(**{name: header.pop(name) for name in sorted(_READING)})
    if version == 2:
        header = read_lists(header)
    info = ProbeInfo(**header, adapter=_find_adapter(header["training"]))
    heads = {
        tokens: _take(tensors, f"checkpoint.{tokens}", Reading(reading.layer, "mean", tokens))
        for tokens in info.checkpoints
    }
    if "1.weight" in tensors:
        raise ProbeFileError(
            "tensors", "are of an MLP, which is no longer read: train a linear probe"
        )
    return Probe(info, _take(tensors, "0", reading), heads)


def _find_adapter(training: object) -> str | None:
    """Return the name of the adapter that ``collect`` had noted, if it was one of ours that did."""
    noted = training.get("adapter") if isinstance(training, dict) else None
    name = noted.get("name") if isinstance(noted, dict) else None
    return name if isinstance(name, str) else None


def _take(tensors: Tensors, name: str, reading: Reading) -> Terms:
    weight, bias = (tensors.take(f"{name}.{part}") for part in ("weight", "bias"))
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise ProbeFileError(
            f"tensors.{name}.weight", f"must have shape (1, hidden_size), got {weight.shape}"
        )
    if bias.shape != (1,):
        raise ProbeFileError(f"tensors.{name}.bias", f"must have shape (1,), got {bias.shape}")
    return Terms.linear(reading, weight, float(bias[0]))
