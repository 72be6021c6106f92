"""Minimising a loss of linear scores, with a penalty on the squared weights.

Knows nothing of prompts, objectives or cross-validation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Linear", "Loss", "minimise"]

Loss = Callable[[Tensor], Tensor]
# Steps of L-BFGS per fit. Most take 3 to 10, but for the kinks of ppo and the weak decays of pg.
_MAX_STEPS = 100
_HISTORY = 10
# What counts as a decrease of the loss, and as a flatter slope, in a line search (Nocedal and
# Wright 2006, section 3.1).
_DECREASE, _FLATTER = 1e-4, 0.9
_MAX_TRIALS = 8


class Linear:
    """Scores as a linear function of weights and a bias.

    The parameters are one vector, shape (width + 1,), float64 on CPU, the bias last.

    Args:
        parts: Features, shape (samples, width) float32 each, on any one device. Their samples count
            as if they stood in one tensor, which need not be made.
    """

    def __init__(self, *parts: Tensor) -> None:
        self._parts = parts
        self._sizes = [len(each) for each in parts]

    def score(self, parameters: Tensor) -> Tensor:
        """Return the scores, (samples,) float64 on CPU."""
        weights = parameters[:-1].to(self._parts[0])
        scores = torch.cat([each @ weights for each in self._parts])
        return scores.cpu().double() + parameters[-1]

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the parameters of what has this one by the scores."""
        pieces = torch.split(gradient.to(self._parts[0]), self._sizes)
        weights = sum(piece @ each for piece, each in zip(pieces, self._parts, strict=True))
        return torch.cat([torch.as_tensor(weights).cpu().double(), gradient.sum()[None]])


@dataclass(frozen=True)
class _Point:
    """A place on a line: how far along, value, slope, and the loss's gradient by the scores."""

    step: float
    value: float
    slope: float
    gradient: Tensor


@dataclass(frozen=True)
class _Line:
    """What is minimised, along one direction: scores and weights are linear in the step."""

    loss: Loss
    scores: Tensor
    scores_along: Tensor
    weights: Tensor
    weights_along: Tensor
    decay: float

    def at(self, step: float) -> _Point:
        scores = (self.scores + step * self.scores_along).requires_grad_()
        loss = self.loss(scores)
        (gradient,) = torch.autograd.grad(loss, scores)
        weights = self.weights + step * self.weights_along
        value = loss.item() + self.decay / 2 * float(weights.square().sum())
        slope = gradient @ self.scores_along + self.decay * weights @ self.weights_along
        return _Point(step, value, float(slope), gradient)


def minimise(
    linear: Linear,
    loss: Loss,
    start: Tensor,
    *,
    decay: float,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
) -> Tensor:
    """Minimise loss(scores) + decay / 2 * (sum of squared weights); the bias is free.

    It is L-BFGS on all samples. Features are passed over twice a step, whatever its line search
    takes, as scores are linear along it.

    Args:
        linear: The scores.
        loss: Of scores, shape (samples,) float64; differentiable.
        start: Parameters to start from.
        decay: At least 0.
        precondition: About the inverse of the second derivative by the parameters, times what it is
            given; symmetric, positive.
        tolerance: Ends where about this share of the loss's decrease from all weights 0 is left to
            gain, or a step gains no more (at the kinks of ``ppo``).

    Returns:
        The parameters.
    """
    found, scores = start, linear.score(start)
    origin = float(loss(torch.zeros_like(scores)))
    still = torch.zeros_like
    here = _Line(loss, scores, still(scores), found[:-1], still(found[:-1]), decay).at(0.0)
    gradient = _add_penalty(linear.pull_back(here.gradient), found, decay)
    history: list[tuple[Tensor, Tensor]] = []
    for _ in range(_MAX_STEPS):
        ideal = precondition(gradient)
        left = float(gradient @ ideal) / 2  # what a quadratic loss would have left to gain
        if left <= tolerance * max(origin - here.value, left):
            break
        direction = -_apply_inverse(gradient, history, precondition)
        slope = float(gradient @ direction)
        if slope >= 0:  # as the history of a loss that is not convex may have it
            history, direction, slope = [], -ideal, -2 * left
        along = linear.score(direction)
        line = _Line(loss, scores, along, found[:-1], direction[:-1], decay)
        point = _search(line, here.value, slope)
        if point is None:
            break
        step = point.step * direction
        found, scores = found + step, scores + point.step * along
        changed = _add_penalty(linear.pull_back(point.gradient), found, decay)
        if float((changed - gradient) @ step) > 0:
            history = [*history, (step, changed - gradient)][-_HISTORY:]
        gained, here, gradient = here.value - point.value, point, changed
        if gained <= tolerance * (origin - here.value):
            break
    return found


def _add_penalty(gradient: Tensor, parameters: Tensor, decay: float) -> Tensor:
    gradient[:-1] += decay * parameters[:-1]
    return gradient


def _search(line: _Line, value: float, slope: float) -> _Point | None:
    """Return a point that meets the strong Wolfe conditions, or at least is lower; or None.

    Args:
        line: Where to search.
        value: At step 0.
        slope: At step 0, < 0.
    """
    low, high, step = 0.0, math.inf, 1.0
    best: _Point | None = None
    for _ in range(_MAX_TRIALS):
        point = line.at(step)
        if not point.value <= value + _DECREASE * step * slope:
            high = step
        else:
            if best is None or point.value < best.value:
                best = point
            if abs(point.slope) <= -_FLATTER * slope:
                return point
            low, high = (low, step) if point.slope > 0 else (step, high)
        step = (low + high) / 2 if math.isfinite(high) else 2 * step
    return best


def _apply_inverse(
    gradient: Tensor,
    history: list[tuple[Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """L-BFGS's two loops (Nocedal and Wright 2006, algorithm 7.4)."""
    rest, shares = gradient.clone(), []
    for step, change in reversed(history):
        share = float(step @ rest) / float(step @ change)
        rest -= share * change
        shares.append(share)
    rest = precondition(rest)
    for (step, change), share in zip(history, reversed(shares), strict=True):
        rest += (share - float(change @ rest) / float(step @ change)) * step
    return rest
