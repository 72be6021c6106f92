"""Terms whose scores are not linear in their weights, fitted together with those that are.

A gate and a rolling maximum read many means of a completion, along the main axes of these. Knows
nothing of datasets, objectives or cross-validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.training.optimiser import Linear, Loss, minimise

__all__ = ["Axes", "Part", "Pooled", "PooledWeights", "solve"]

# Steps of a fit, and how many it remembers. It ends with one that lowers the loss, which is about
# 1, by less than the tolerance, or where all slopes are flat: a strong decay leaves little of the
# loss to gain, and all of a probe is in that.
_MAX_STEPS, _HISTORY, _TOLERANCE, _FLAT = 100, 10, 1e-11, 1e-8
# The most that a logistic loss has of a second derivative; others come close enough.
_CURVATURE = 0.25
# A value's weights decay as those of a reading do, which it is while the gate lets all through. A
# gate must part segments by about 1 to have an effect: its weights decay by a hundredth of that.
_GATE_SCALE = 10.0


@dataclass(frozen=True)
class Axes:
    """The main axes of states.

    Attributes:
        means: Shape (hidden,), float32.
        turn: Shape (hidden, axes), float32: what lies along the axes is (states - means) @ turn.
    """

    means: Tensor
    turn: Tensor

    def project(self, states: Tensor) -> Tensor:
        """Return states along the axes: (..., hidden) to (..., axes), float32."""
        return (states.float() - self.means) @ self.turn

    def undo(self, weights: Tensor) -> tuple[NDArray[np.float32], float]:
        """Return weights of the axes, (axes,), as those of the states, and what to add to these."""
        raw = self.turn.double() @ weights
        return raw.float().numpy(), -float(raw @ self.means.double())


@dataclass(frozen=True)
class PooledWeights:
    """The weights of one such term, of states.

    Attributes:
        value: Shape (hidden,), float32; its offset is in the probe's bias.
        gate, gate_bias: Likewise, and what is added; of length 0 of a maximum.
    """

    value: NDArray[np.float32]
    gate: NDArray[np.float32]
    gate_bias: float


@dataclass(frozen=True)
class Pooled:
    """What a gate, or a maximum, reads of samples.

    Its parameters are, for the axes, those of a gate (with its bias last) and then those of the
    value; of a maximum the value's alone.

    Attributes:
        axes: Along which.
        means: Shape (samples, segments, axes), float32: of the segments' states.
        sizes: Shape (samples, segments), float32: a segment's tokens; where 0, there is none.
        gated: Whether it is the mean of values as far as a gate lets each, or else the largest.
    """

    axes: Axes
    means: Tensor
    sizes: Tensor
    gated: bool

    @property
    def decayed(self) -> Tensor:
        """1 for each parameter that a weight decay holds down, 0 for a bias: float64."""
        ones = torch.ones(self.means.shape[2], dtype=torch.float64)
        return torch.cat([ones, ones[:1] * 0, ones]) if self.gated else ones

    @property
    def squares(self) -> Tensor:
        """The mean square of what each parameter is multiplied with, float64."""
        found = self.means.square().sum((0, 1)).double() / (self.sizes > 0).sum()
        if not self.gated:
            return found
        return torch.cat([_GATE_SCALE**2 * found, torch.ones_like(found[:1]), found])

    def score(self, parameters: Tensor) -> Tensor:
        """Return the samples' scores by the parameters: (samples,) float32."""
        width = self.means.shape[2]
        parameters = parameters.float()
        values = self.means @ parameters[-width:]
        if not self.gated:
            return values.masked_fill(self.sizes == 0, -torch.inf).amax(1)
        gates = self.means @ (_GATE_SCALE * parameters[:width]) + parameters[width]
        logs = torch.nn.functional.logsigmoid(gates) + self.sizes.log()  # an empty one weighs 0
        return (logs.softmax(1) * values).sum(1)

    def take(self, rows: Tensor) -> "Pooled":
        """Return some samples, in the order given."""
        return Pooled(self.axes, self.means[rows], self.sizes[rows], self.gated)

    def split(self, counts: list[int]) -> list["Pooled"]:
        """Return parts of so many samples each, no copies."""
        parts = zip(torch.split(self.means, counts), torch.split(self.sizes, counts), strict=True)
        return [Pooled(self.axes, means, sizes, self.gated) for means, sizes in parts]

    def undo(self, parameters: Tensor, scale: float) -> tuple[PooledWeights, float]:
        """Return weights of states, for scores divided by the scale, and what to add to these."""
        width = self.means.shape[2]
        value, offset = self.axes.undo(parameters[-width:] / scale)
        if not self.gated:
            return PooledWeights(value, np.zeros(0, np.float32), 0.0), offset
        gate, shift = self.axes.undo(_GATE_SCALE * parameters[:width])
        return PooledWeights(value, gate, float(parameters[width]) + shift), offset


@dataclass(frozen=True)
class Part:
    """Some samples of a fit.

    The parameters are one vector, float64 on CPU: of the features, of each pooled term, the bias.

    Attributes:
        features: Shape (samples, width), float32, on any device.
        pooled: What the other terms read.
    """

    features: Tensor
    pooled: tuple[Pooled, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """What every step of a fit passes over."""
        return [self.features, *(each.means for each in self.pooled)]

    @property
    def decayed(self) -> Tensor:
        """1 for each parameter that a weight decay holds down, 0 for a bias: float64."""
        ones = torch.ones(self.features.shape[1] + 1, dtype=torch.float64)
        return torch.cat([ones[:-1], *(each.decayed for each in self.pooled), ones[:1] * 0])

    @property
    def squares(self) -> Tensor:
        """The mean square of what each parameter is multiplied with, about, float64."""
        found = self.features.square().mean(0).cpu().double()
        return torch.cat([found, *(each.squares for each in self.pooled), found.new_ones(1)])

    def split(self, counts: list[int]) -> list["Part"]:
        """Return parts of so many samples each, no copies."""
        others = [each.split(counts) for each in self.pooled]
        return [
            Part(features, tuple(each[at] for each in others))
            for at, features in enumerate(torch.split(self.features, counts))
        ]

    def divide(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of the features, of each pooled term, and the bias, (1,)."""
        widths = [self.features.shape[1], *(len(each.decayed) for each in self.pooled), 1]
        return torch.split(parameters, widths)

    def score(self, parameters: Tensor) -> Tensor:
        """Return the scores, (samples,) float64 on CPU."""
        weights, *others, bias = self.divide(parameters)
        scores = Linear(self.features).score(torch.cat([weights, bias]))
        for each, own in zip(self.pooled, others, strict=True):
            scores = scores + each.score(own)
        return scores

    def find_level(self, parameters: Tensor) -> Tensor:
        """Return the mean score, if these are all samples: features have mean 0 over them."""
        _, *others, bias = self.divide(parameters)
        terms = zip(self.pooled, others, strict=True)
        return sum((each.score(own).double().mean() for each, own in terms), start=bias[0])


def solve(
    parts: Sequence[Part],
    loss: Loss,
    start: Tensor,
    *,
    decay: float,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
) -> Tensor:
    """Minimise loss(scores) + decay / 2 * (sum of squared weights); biases are free.

    Args:
        parts: Their samples count as if they stood in one.
        loss: As in ``minimise``, as are the others; the last two are for linear scores only. Others
            have minima besides the least: which is found depends on the start.
        start: Parameters to start from.
        decay: At least 0.
        precondition: As in ``minimise``.
        tolerance: Likewise.
    """
    if not parts[0].pooled:
        return minimise(
            Linear(*(each.features for each in parts)),
            loss,
            start,
            decay=decay,
            precondition=precondition,
            tolerance=tolerance,
        )
    decayed = parts[0].decayed
    # In these units the loss curves about the same along all parameters.
    units = (_CURVATURE * parts[0].squares + decay * decayed).rsqrt()
    found = (start / units).requires_grad_()
    # Not scipy's, whose BLAS takes all threads for tiny matrices: up to 7 times as long.
    optimiser = torch.optim.LBFGS(
        [found],
        max_iter=_MAX_STEPS,
        max_eval=2 * _MAX_STEPS,
        history_size=_HISTORY,
        tolerance_grad=_FLAT,
        tolerance_change=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> float:
        parameters = found * units
        penalty = decay / 2 * (parameters * decayed).square().sum()
        value = loss(torch.cat([each.score(parameters) for each in parts])) + penalty
        (found.grad,) = torch.autograd.grad(value, found)
        return value.item()

    optimiser.step(evaluate)  # type: ignore[no-untyped-call]  # torch gives it no types
    return found.detach() * units
