"""Minimising a loss over the weights of a small network; standardising features and undoing it.

Knows nothing of prompts, objectives or cross-validation. Networks are lists of (weight, bias), as
in ``Probe``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Inputs", "Layers", "fit_path", "forward", "prepare"]

Layers = list[tuple[Tensor, Tensor]]
# Steps of L-BFGS per fit. A linear fit takes 4 to 15, but for the kinks of ppo and the weak decays
# of pg; MLPs of 32 gained nothing on fresh prompts after 40.
_MAX_STEPS = 40
# Ends where a step lowers the loss by less, or moves every weight by less. Against 1e-11 and 500
# steps, 1,600 samples x 576: scores correlate by > 0.9999, save pg and ppo at decay 0.1 (0.995).
_TOLERANCE = 1e-7
# A feature's standard deviation counts as at least this share of the median one: a nearly constant
# feature is rounding noise, which must not be blown up.
_MIN_STD = 1e-3
# Directions with a smaller share of the largest variance are below float32's rounding.
_MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class Inputs:
    """Features standardised and rotated to their principal axes, and the way back.

    A rotation leaves an L2 penalty as it is, so an optimum stays one; along the axes the loss's
    curvature is nearly diagonal, which halves the time of ``mse``, ``ce`` and ``bt`` (1,600 samples
    x 576) and leaves that of ``pg`` and ``ppo``.

    Attributes:
        features: Shape (samples, axes), float32.
        variances: Shape (axes,), of the features.
        mean: Shape (hidden,), of the raw features.
        rotation: Shape (axes, hidden): features = (raw - mean) @ rotation.T; it also divides by
            the raw standard deviations.
    """

    features: Tensor
    variances: Tensor
    mean: Tensor
    rotation: Tensor

    def undo(self, layers: Layers) -> Layers:
        """Return a network with the same scores for raw features."""
        (weight, bias), *rest = layers
        raw = weight @ self.rotation
        return [(raw, bias - raw @ self.mean), *rest]


def prepare(features: Tensor) -> Inputs:
    """Standardise and rotate features of shape (samples, hidden)."""
    raw = features.to(torch.float32)
    variance, mean = torch.var_mean(raw, dim=0, correction=0)
    std = variance.sqrt()
    std = std.clamp_min(max(_MIN_STD * float(std.median()), torch.finfo(torch.float32).tiny))
    standard = (raw - mean) / std
    variances, axes = torch.linalg.eigh(standard.T @ standard / len(raw))  # ascending
    kept = variances > _MIN_VARIANCE * variances[-1]
    axes = axes[:, kept]
    return Inputs(standard @ axes, variances[kept], mean, axes.T / std)


def forward(features: Tensor, layers: Layers) -> Tensor:
    """Score features: (samples, width) to (samples,), with a ReLU between layers."""
    for index, (weight, bias) in enumerate(layers):
        if index:
            features = torch.relu(features)
        features = torch.nn.functional.linear(features, weight, bias)
    return features.squeeze(-1)


def fit_path(
    features: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    variances: Tensor,
    curvature: float,
    weight_decays: Sequence[float],
    hidden: tuple[int, ...],
    seed: int,
) -> Iterator[Layers]:
    """Minimise loss(scores) + decay / 2 * (sum of squared weights), for each decay.

    The optimiser is L-BFGS on the full batch. On MLPs of 32, AdamW (lr 3e-3) came to about the same
    reward on fresh prompts after 40 to 120 steps, and brings a rate and a number of steps:
    so nothing is stopped early, and the weight decay is all that cross-validation chooses.

    Args:
        features: Shape (samples, axes), float32.
        loss: Of scores, shape (samples,), float64.
        variances: Shape (axes,), of the features.
        curvature: Rough second derivative of the loss by a score, > 0; a good guess saves steps.
        weight_decays: Each >= 0. Each linear fit starts from the one before, so give the strongest
            first. Each MLP starts anew, since one whose weights have decayed to 0 stays there.
        hidden: Widths of the hidden layers.
        seed: Of an MLP's first weights.

    Yields:
        A network for each decay, in order.
    """
    widths = (features.shape[1], *hidden, 1)
    start = _flatten(_initial_layers(widths, seed=seed)).double()
    for decay in weight_decays:
        # L-BFGS is quickest where the loss curves the same in all directions.
        units = torch.ones_like(start)
        if not hidden:
            units[:-1] = (variances.double().clamp_min(0) * curvature + decay).rsqrt()
        found = _minimise(features, loss, start, units=units, decay=decay, widths=widths)
        if not hidden:
            start = found
        yield _unflatten(found.float(), widths)


def _minimise(
    features: Tensor,
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    units: Tensor,
    decay: float,
    widths: tuple[int, ...],
) -> Tensor:
    is_weight = _flatten([(torch.ones(b, a), torch.zeros(b)) for a, b in pairwise(widths)])
    steps = (start / units).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [steps],
        max_iter=_MAX_STEPS,
        tolerance_grad=0.0,
        tolerance_change=_TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> float:
        values = steps * units
        # Sums are in float64: small differences of the loss guide the line search.
        scores = forward(features, _unflatten(values.float(), widths)).double()
        total = loss(scores) + decay / 2 * (values * is_weight).square().sum()
        (steps.grad,) = torch.autograd.grad(total, steps)
        return total.item()

    optimiser.step(evaluate)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return steps.detach() * units


def _initial_layers(widths: tuple[int, ...], *, seed: int) -> Layers:
    """Zeros for a linear network, whose loss then has one way down; He et al. 2015 for an MLP."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.0 if len(widths) == 2 else 1.0
    return [
        (size * (2 / inputs) ** 0.5 * torch.randn(outputs, inputs, generator=generator),
         torch.zeros(outputs))
        for inputs, outputs in pairwise(widths)
    ]  # fmt: skip


def _flatten(layers: Layers) -> Tensor:
    return torch.cat([each.flatten() for layer in layers for each in layer])


def _unflatten(flat: Tensor, widths: tuple[int, ...]) -> Layers:
    layers, begin = [], 0
    for inputs, outputs in pairwise(widths):
        middle, end = begin + inputs * outputs, begin + inputs * outputs + outputs
        layers.append((flat[begin:middle].view(outputs, inputs), flat[middle:end]))
        begin = end
    return layers
