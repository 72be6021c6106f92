"""Whether a probe fits the model that is served."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qprobe import Probe, ProbeFileError
from qprobe_server.errors import StartupError

__all__ = [
    "ModelFacts",
    "check_exposed",
    "check_fit",
    "check_layers",
    "find_inner_layers",
    "list_inner_layers",
]


@dataclass(frozen=True)
class ModelFacts:
    """What the loaded model is, as far as a probe cares.

    Attributes:
        name: The model argument: a hub id or a folder.
        architecture: Class name, for messages.
        hidden_size: Width of its states.
        num_layers: Number of blocks.
        has_inner_layers: Whether its vLLM class can give states of inner layers.
        logprobs_mode: What it gives as log-probabilities, as vLLM's flag of that name says it.
        has_adapters: Whether the server takes LoRA adapters.
    """

    name: str
    architecture: str
    hidden_size: int
    num_layers: int
    has_inner_layers: bool
    logprobs_mode: str
    has_adapters: bool = False


def find_inner_layers(probes: Sequence[Probe]) -> tuple[int, ...]:
    """Return the inner layers that probes read, each once, in rising order."""
    return tuple(sorted({layer for each in probes for layer in list_inner_layers(each)}))


def list_inner_layers(probe: Probe) -> list[int]:
    """Return the inner layers that a probe reads, rising."""
    return sorted({layer for each in probe.sums for layer in each.layers if isinstance(layer, int)})


def check_fit(probe: Probe, model: ModelFacts, *, allow_model_mismatch: bool) -> None:
    """Check a probe against the model.

    Raises:
        ProbeFileError: It does not fit; the field is named.
    """
    info = probe.info
    if info.endpoint is not None:
        raise ProbeFileError(
            "endpoint", "is an embeddings endpoint, and no model's states: qprobe proxy serves it"
        )
    if info.hidden_size != model.hidden_size:
        raise ProbeFileError(
            "hidden_size", f"is {info.hidden_size}, that of {model.name!r} is {model.hidden_size}"
        )
    if info.num_layers != model.num_layers:
        raise ProbeFileError(
            "num_layers", f"is {info.num_layers}, that of {model.name!r} is {model.num_layers}"
        )
    inner = list_inner_layers(probe)
    if inner and not model.has_inner_layers:
        raise ProbeFileError(
            "terms",
            f"read layer {inner[0]}, and vLLM's class {model.architecture} gives the 'final' layer "
            "only",
        )
    reads_logprobs = any(each.reads_logprobs for each in probe.sums)
    if reads_logprobs and model.logprobs_mode != "raw_logprobs":
        raise ProbeFileError(
            "terms",
            "read log-probabilities, which must be those of the model itself: --logprobs-mode must "
            f"be 'raw_logprobs', got {model.logprobs_mode!r}",
        )
    # The last part of the name, so that a copy of a hub's model in a folder of its name will do.
    if not allow_model_mismatch and Path(info.base_model).name != Path(model.name).name:
        raise ProbeFileError(
            "base_model",
            f"is {info.base_model!r}, the server's is {model.name!r}; --allow-model-mismatch "
            "serves it anyway",
        )
    if not allow_model_mismatch and info.adapter is not None and not model.has_adapters:
        raise ProbeFileError(
            "adapter",
            f"is {info.adapter!r}, and this server takes no LoRA adapter: start it with "
            "--enable-lora --lora-modules NAME=FOLDER; --allow-model-mismatch serves it anyway",
        )


def check_layers(layers: Sequence[int], model: ModelFacts) -> None:
    """Check the inner layers that a server exposes.

    Raises:
        StartupError: The model has no such layer, or does not give it.
    """
    for layer in layers:
        if not 1 <= layer < model.num_layers:
            raise StartupError(
                f"--probe-layers: must be from 1 to {model.num_layers - 1}, or 'final', got {layer}"
            )
        if not model.has_inner_layers:
            raise StartupError(
                f"--probe-layers: vLLM's class {model.architecture} gives the 'final' layer only, "
                f"got {layer}"
            )


def check_exposed(probe: Probe, layers: Sequence[int]) -> None:
    """Check that a probe reads layers that the engine gives.

    Raises:
        ProbeFileError: It does not; the message names the flag that would expose it.
    """
    inner = list_inner_layers(probe)
    hidden = [each for each in inner if each not in layers]
    if hidden:
        needed = ",".join(map(str, sorted({*layers, *inner})))
        raise ProbeFileError(
            "terms",
            f"read layer {hidden[0]}, which this server does not expose: start it with "
            f"--probe-layers {needed},final",
        )
