"""What a probe is fitted to: blocks of features and numbers, standardised, along their main axes.

Made once for a reading and shared by all that is trained on it, since rewards have no part in it.
Knows nothing of rewards, prompts or losses. Tensors of samples are float32, on a GPU if torch has
one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qprobe.errors import TrainingError
from qprobe.training.pooled import Pooled

__all__ = ["Inputs", "Weights", "prepare", "prepare_each", "use_threads"]

# With at most so many features, or samples, the axes hold all that varies. Else so many axes are
# found, by so many samples.
_MAX_FEATURES = 1024
_MAX_SAMPLES = 2048
# A feature's standard deviation counts as at least this share of its block's median one: a nearly
# constant feature is rounding noise, which must not be blown up.
_MIN_STD = 1e-3
# What varies by less than this share of its size is constant, up to float32's rounding.
_CONSTANT = 1e-6
# Directions with a smaller share of the largest variance are below float32's rounding.
_MIN_VARIANCE = 1e-6
# Numbers are few, and each means something: a weight of theirs decays by a hundredth of what a
# feature's does.
_NUMBER_SCALE = 10.0
# Copied into their order at a time.
_ROWS = 8192
# Below so many values threads wait for each other longer than they work.
_MIN_THREADED = 1 << 24


@dataclass(frozen=True)
class Weights:
    """A linear probe of raw blocks and numbers.

    Attributes:
        blocks: Shape (width,) for each block, float32.
        numbers: Shape (numbers,), float32.
        bias: Added to every score.
    """

    blocks: list[Tensor]
    numbers: Tensor
    bias: float


@dataclass(frozen=True)
class Inputs:
    """Standardised features, and their axes.

    A rotation leaves an L2 penalty as it is, so an optimum along all axes is one of the features.

    Rows are in the order that was asked for.

    Attributes:
        order: Shape (samples,): which sample each row is.
        reduced: Shape (samples, axes): the features along the axes.
        variances: Shape (axes,), of these; float64 on CPU.
        whole: Shape (samples, width): the features, if the axes leave out what varies; else None.
        axes: Shape (width, axes), orthonormal.
        left_out: Mean variance of the directions that the axes leave out.
        means: Shape (width,), of the raw features; float64 on CPU.
        scales: Shape (width,): features = (raw - means) * scales; 0 for constant ones.
        widths: Of each block, then the number of numbers.
        pooled: What terms read that are fitted with the features, along all their axes then.
    """

    order: Tensor
    reduced: Tensor
    variances: Tensor
    whole: Tensor | None
    axes: Tensor
    left_out: float
    means: Tensor
    scales: Tensor
    widths: tuple[int, ...]
    pooled: tuple[Pooled, ...] = ()

    def expand(self, weights: Tensor) -> Tensor:
        """Return weights of the axes as those of the features: (axes,) to (width,), float64."""
        return (self.axes @ weights.to(self.axes)).cpu().double()

    def project(self, weights: Tensor) -> Tensor:
        """Return the part of the features' weights that is along the axes: (width,) to (axes,)."""
        return (weights.to(self.axes) @ self.axes).cpu().double()

    def undo(self, weights: Tensor, bias: float) -> Weights:
        """Return weights of the features, (width,) float64, as those of the raw ones."""
        raw = weights * self.scales
        *blocks, numbers = (each.clone() for each in torch.split(raw.float(), [*self.widths]))
        return Weights(blocks, numbers, bias - float(raw @ self.means))


def prepare(
    blocks: Sequence[Tensor],
    numbers: Tensor | None = None,
    *,
    order: Tensor | None = None,
    pooled: Sequence[Pooled] = (),
) -> Inputs:
    """Standardise features, each by itself, and find their axes; see ``prepare_each``.

    Args:
        blocks: Shape (samples, width) each, any float dtype, finite.
        numbers: Shape (samples, numbers), or None.
        order: Shape (samples,): which sample each row is to be; None leaves them as they are.
        pooled: What terms read of the same samples that are fitted with these.

    Raises:
        TrainingError: Shapes do not fit, a value or a spread is not finite in float32, or no
            feature varies; the message says which.
    """
    every = [*blocks, *([] if numbers is None else [numbers]), *(each.means for each in pooled)]
    if not every:
        raise TrainingError("features", "must be there, or numbers")
    widths = [each.shape[1] if each.ndim == 2 else 0 for each in blocks]
    order = torch.arange(len(every[0])) if order is None else order
    return prepare_each(blocks, numbers, widths=widths, order=order, pooled=pooled)


def prepare_each(
    blocks: Iterable[Tensor],
    numbers: Tensor | None = None,
    *,
    widths: Sequence[int],
    order: Tensor,
    pooled: Sequence[Pooled] = (),
) -> Inputs:
    """Prepare blocks that come one by one; each is dropped before the next is asked for.

    Beside one of them it holds one float32 copy of all, and for many wide features a quarter of a
    block more.

    Args:
        blocks: As ``prepare`` takes them, as are ``numbers`` and ``order``, and what is raised.
        numbers: Shape (samples, numbers), or None.
        widths: Of each block.
        order: Shape (samples,).
        pooled: Likewise.
    """
    others = tuple(each.take(order) for each in pooled)
    if others and not widths and numbers is None:
        return _leave_empty(order, others)
    num_numbers = 0 if numbers is None else numbers.shape[-1]
    names = [f"features.{index}" if index else "features" for index in range(len(widths))]
    standard = torch.empty(len(order), sum(widths) + num_numbers)
    *places, last = torch.split(standard, [*widths, num_numbers], dim=1)
    parts, moments = iter(blocks), []
    with use_threads(standard):
        for name, place in zip(names, places, strict=True):
            # No variable may hold the block, which may be as large as the machine allows.
            moments.append(_standardise(name, next(parts), place, order))
        if numbers is not None:
            moments.append(_standardise("numbers", numbers, last, order))
        means, scales = (torch.cat(each) for each in zip(*moments, strict=True))
        if not bool(scales.any()):
            raise TrainingError("numbers", "do not vary: all samples have the same")
        standard = standard.to("cuda" if torch.cuda.is_available() else "cpu")
        axes = _find_axes(standard)
        reduced = standard @ axes
        variances = _mean_squares(reduced)
        left_out = float(_mean_squares(standard).sum() - variances.sum())
    is_whole = bool(others) or min(standard.shape[1], len(standard) / 2) <= _MAX_FEATURES
    return Inputs(
        order,
        reduced,
        variances,
        None if is_whole else standard,
        axes,
        max(left_out, 0.0) / max(standard.shape[1] - axes.shape[1], 1),
        means,
        scales,
        (*widths, num_numbers),
        others,
    )


@contextmanager
def use_threads(*features: Tensor) -> Iterator[None]:
    """Take all of torch's threads if there is work for them, else one.

    Two threads took up to 5 times as long as one for 2,500 x 576 on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if sum(each.numel() for each in features) >= _MIN_THREADED else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _leave_empty(order: Tensor, pooled: tuple[Pooled, ...]) -> Inputs:
    """Return inputs without a feature."""
    nothing, none = torch.zeros(0, dtype=torch.float64), torch.zeros(len(order), 0)
    return Inputs(order, none, nothing, None, none[:0], 0.0, nothing, nothing, (0,), pooled)


def _standardise(name: str, raw: Tensor, place: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Write standardised features in an order to a place for them; return means and scales."""
    if raw.shape != place.shape or 0 in raw.shape:
        raise TrainingError(
            name,
            f"must be (samples, width), of {len(order)!r} samples each, got {tuple(raw.shape)!r}",
        )
    for rows, some in zip(torch.split(order, _ROWS), torch.split(place, _ROWS), strict=True):
        some.copy_(raw[rows])
    variance, mean = torch.var_mean(place, dim=0, correction=0)
    spoilt = ~torch.isfinite(variance)
    if bool(spoilt.any()):
        column = int(spoilt.nonzero()[0])
        rows = order[~torch.isfinite(place[:, column])]
        if len(rows):
            raise TrainingError(name, f"must be finite, but row {int(rows.min())!r} is not")
        raise TrainingError(
            name, f"vary by more than float32 can square, in column {column!r}: divide them first"
        )
    std = variance.sqrt()
    varies = std > _CONSTANT * mean.abs()
    if not bool(varies.any()) and name != "numbers":
        raise TrainingError(name, "do not vary: all samples have the same")
    if name != "numbers":
        std = std.clamp_min(_MIN_STD * float(std.median()))
    scale = torch.where(varies, (_NUMBER_SCALE if name == "numbers" else 1.0) / std, 0.0)
    place.sub_(mean).mul_(scale)
    return mean.double(), scale.double()


def _find_axes(standard: Tensor) -> Tensor:
    """Return orthonormal axes, (width, axes), those that vary most first."""
    num, width = standard.shape
    if width <= min(num, _MAX_FEATURES):
        variances, axes = _decompose(standard.T @ standard / num)
        return axes[:, variances > _MIN_VARIANCE * variances[0]]
    rows = standard
    if num > _MAX_SAMPLES:
        rows = standard[torch.linspace(0, num - 1, _MAX_SAMPLES, device=standard.device).long()]
    variances, vectors = _decompose(rows @ rows.T / len(rows))
    kept = variances > _MIN_VARIANCE * variances[0]
    if num > _MAX_SAMPLES:
        kept[_MAX_FEATURES:] = False
    return rows.T @ (vectors[:, kept] / (variances[kept] * len(rows)).sqrt())


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    # On one thread: two took 8 times as long for 2,048 x 2,048 on a busy machine, and gain little.
    with use_threads():
        values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def _mean_squares(features: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(features, dim=0)
    return norms.cpu().double().square() / len(features)
