"""What a probe is: a small network on one hidden state, and what one must know to use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qprobe.errors import ProbeFileError
from qprobe.probe.schedule import Schedule, check_schedule
from qprobe.probe.values import OBJECTIVES, Layer, Pooling, is_beta

__all__ = ["OBJECTIVES", "Layer", "Pooling", "Probe", "ProbeInfo", "is_beta"]


@dataclass(frozen=True, kw_only=True)
class ProbeInfo:
    """What a probe expects of the model, and what its maker recommends.

    Attributes:
        base_model: Id of the model whose states the probe reads, such as a hub id.
        hidden_size: Width of that model's hidden states, >= 1.
        num_layers: Its number of blocks, >= 1.
        layer: Index as in transformers' ``hidden_states``, 1 <= layer < num_layers (the residual
            stream after that many blocks, not normed), or ``final`` (after the last norm).
        pooling: Which embedding of a completion is scored: the state of its ``last`` kept token, or
            the ``mean`` over its kept tokens. The state of a token is the one that has read it. An
            empty completion is embedded by the prompt's last token.
        window: With ``mean``, only the first ``window`` tokens count, >= 1; None takes them all.
        objective: What the probe was trained with.
        k: Recommended number of candidates, >= 1.
        beta: Recommended temperature of the choice, in units of score, >= 0.
        training: A summary in JSON types: data, numbers, date. Free form.
        licence: SPDX expression for the weights, or None.
        checkpoints: The probe has a head for the mean over the first so many tokens of the same
            layer, for each of these numbers; >= 1, rising.
        schedule: When it recommends to drop candidates, at some of its checkpoints; empty if never.

    Raises:
        ProbeFileError: A field is out of range; it is named.
    """

    base_model: str
    hidden_size: int
    num_layers: int
    layer: Layer
    pooling: Pooling
    window: int | None = None
    objective: str
    k: int
    beta: float
    training: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    checkpoints: tuple[int, ...] = ()
    schedule: Schedule = ()

    def __post_init__(self) -> None:
        if not isinstance(self.base_model, str) or not self.base_model:
            raise ProbeFileError("base_model", f"must name a model, got {self.base_model!r}")
        for name in ("hidden_size", "num_layers", "k"):
            _check_count(name, getattr(self, name))
        self._check_layer()
        if self.pooling not in ("last", "mean"):
            raise ProbeFileError("pooling", f"must be 'last' or 'mean', got {self.pooling!r}")
        if self.window is not None:
            _check_count("window", self.window, also=" or null")
            if self.pooling != "mean":
                raise ProbeFileError("window", "goes with pooling 'mean' only")
        if self.objective not in OBJECTIVES:
            allowed = ", ".join(OBJECTIVES)
            raise ProbeFileError("objective", f"must be one of {allowed}, got {self.objective!r}")
        if not is_beta(self.beta):
            raise ProbeFileError("beta", f"must be a finite number >= 0, got {self.beta!r}")
        if not isinstance(self.training, dict):
            raise ProbeFileError("training", f"must be an object, got {self.training!r}")
        if self.licence is not None and not isinstance(self.licence, str):
            raise ProbeFileError("licence", f"must be a string or null, got {self.licence!r}")
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        for index, tokens in enumerate(self.checkpoints):
            _check_count(f"checkpoints.{index}", tokens)
        if list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise ProbeFileError("checkpoints", f"must rise, got {list(self.checkpoints)}")
        try:
            check_schedule(self.schedule)
        except ValueError as error:
            place, text = error.args
            raise ProbeFileError(f"schedule.{place}", text) from error
        for index, step in enumerate(self.schedule):
            if step.tokens not in self.checkpoints:
                raise ProbeFileError(
                    f"schedule.{index}.tokens",
                    f"must be one of the checkpoints {list(self.checkpoints)}, got {step.tokens}",
                )

    def _check_layer(self) -> None:
        if self.layer == "final":
            return
        _check_count("layer", self.layer, also=" or 'final'")
        if self.layer >= self.num_layers:
            raise ProbeFileError(
                "layer",
                f"must be from 1 to {self.num_layers - 1} for a model of {self.num_layers} "
                f"layers, or 'final' for the state after the last norm, got {self.layer!r}",
            )


def _check_count(name: str, value: object, *, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ProbeFileError(name, f"must be an integer >= 1{also}, got {value!r}")


class Probe:
    """Q(x, a): one score for the embedding of prompt x and completion a.

    One layer is the linear probe w . phi + b; two or three are the MLPs of Li et al. 2024, with a
    ReLU between layers. Scores compare candidates of one prompt, and nothing else.

    Args:
        info: What the probe expects and recommends.
        layers: (weight, bias) of each layer in order: shapes (out, in) and (out,), the first ``in``
            being the hidden size and the last ``out`` 1. Copied to float32 on CPU.
        heads: (weight, bias) of each of ``info.checkpoints``, linear: shapes (1, hidden size) and
            (1,). They rank candidates, so that they need no common scale with the layers.

    Raises:
        ProbeFileError: Shapes do not chain, a weight is not finite, more than 3 layers, or heads
            that are not those of the checkpoints.
    """

    def __init__(
        self,
        info: ProbeInfo,
        layers: list[tuple[Tensor, Tensor]],
        heads: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        heads = heads or {}
        _check_shapes(info, layers)
        if sorted(heads) != list(info.checkpoints):
            raise ProbeFileError(
                "checkpoints", f"are {list(info.checkpoints)}, the heads' are {sorted(heads)}"
            )
        self.info = info
        self.layers = [_copy(str(index), *layer) for index, layer in enumerate(layers)]
        self.heads = {}
        for tokens in info.checkpoints:
            weight, bias = heads[tokens]
            wanted, shapes = ((1, info.hidden_size), (1,)), (tuple(weight.shape), tuple(bias.shape))
            if shapes != wanted:
                raise ProbeFileError(
                    f"tensors.checkpoint.{tokens}", f"must have shapes {wanted}, got {shapes}"
                )
            self.heads[tokens] = _copy(f"checkpoint.{tokens}", weight, bias)

    @property
    def is_linear(self) -> bool:
        """Whether the mean of per-token scores is the score of the mean embedding."""
        return len(self.layers) == 1

    def score(self, features: Tensor) -> Tensor:
        """Score embeddings.

        Args:
            features: Shape (..., hidden_size), any float dtype, on CPU.

        Returns:
            Shape (...), float32.
        """
        activation = features.to(torch.float32)
        for index, (weight, bias) in enumerate(self.layers):
            if index:
                activation = torch.relu(activation)
            activation = torch.nn.functional.linear(activation, weight, bias)  # (..., out)
        return activation.squeeze(-1)

    def score_head(self, tokens: int, features: Tensor) -> Tensor:
        """Score means over the first so many tokens by the head of that checkpoint, as ``score``.

        Raises:
            KeyError: There is no such checkpoint.
        """
        weight, bias = self.heads[tokens]
        return torch.nn.functional.linear(features.to(torch.float32), weight, bias).squeeze(-1)


def _copy(name: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights as float32 on CPU.

    Raises:
        ProbeFileError: One is not finite.
    """
    copies = [each.detach().to("cpu", torch.float32, copy=True) for each in (weight, bias)]
    for part, tensor in zip(("weight", "bias"), copies, strict=True):
        if not bool(torch.isfinite(tensor).all()):
            raise ProbeFileError(f"tensors.{name}.{part}", "holds a non-finite value")
    return copies[0], copies[1]


def _check_shapes(info: ProbeInfo, layers: list[tuple[Tensor, Tensor]]) -> None:
    if not 1 <= len(layers) <= 3:
        raise ProbeFileError("tensors", f"must hold 1 to 3 layers, got {len(layers)}")
    widths = [info.hidden_size]
    for index, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != widths[-1]:
            raise ProbeFileError(
                f"tensors.{index}.weight",
                f"must have shape (out, {widths[-1]}), got {tuple(weight.shape)}",
            )
        if tuple(bias.shape) != (weight.shape[0],):
            raise ProbeFileError(
                f"tensors.{index}.bias",
                f"must have shape ({weight.shape[0]},), got {tuple(bias.shape)}",
            )
        widths.append(weight.shape[0])
    if widths[-1] != 1 or any(width < 1 for _, width in pairwise(widths)):
        raise ProbeFileError("tensors", f"must end in one score, got layer widths {widths}")
