"""From scores to a choice: the softmax resampling rule. Pure: no I/O, no globals, no engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import ScoreError

__all__ = ["Draw", "softmax_resample"]


@dataclass(frozen=True)
class Draw:
    """A choice among k candidates.

    Attributes:
        selected: Indices of the chosen candidates, in the order drawn; all different.
        weights: Shape (k,), float64. Each candidate's probability to be drawn first.
        kl: In nats, 0 <= kl <= log k. Estimate of KL(policy || base model): log k - H(weights).
    """

    selected: list[int]
    weights: NDArray[np.float64]
    kl: float


def softmax_resample(
    scores: Sequence[float] | NDArray[np.floating], beta: float, n: int, rng: np.random.Generator
) -> Draw:
    """Draw n of k candidates without replacement, by softmax(scores / beta).

    n = 1 is the rule of Li et al. 2024, section 3: one of the k with probability
    softmax(scores / beta). For n > 1 the Gumbel-top-n trick (Kool et al. 2019) draws as if one
    after another, each time renormalising over those that are left.

    Args:
        scores: Shape (k,), finite, comparable with each other only.
        beta: In units of score, 0 <= beta. 0 takes the best, ties broken evenly at random; infinity
            draws evenly, as the base model does.
        n: How many to draw, 1 <= n <= k.
        rng: Advanced by k numbers, whatever the arguments.

    Raises:
        ScoreError: There is no score, one is not finite, or beta or n is out of range.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ScoreError(f"scores must be a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(f"scores[{index}] is {values[index]!r}, which is not finite")
    if not beta >= 0:
        raise ScoreError(f"beta must be at least 0, got {beta!r}")
    k = values.size
    if not 1 <= n <= k:
        raise ScoreError(f"n must be from 1 to the {k} candidates, got {n!r}")

    noise = rng.gumbel(size=k)
    if beta == 0:
        best = values == values.max()
        weights = best / best.sum()
        order = np.lexsort((noise, values))[::-1]
    else:
        # A tiny beta may overflow the quotient: -inf is a weight of 0, and the best is always 0.
        with np.errstate(over="ignore"):
            logits = (values - values.max()) / beta
        weights = np.exp(logits)
        weights /= weights.sum()
        order = np.lexsort((noise, logits + noise))[::-1]
    return Draw(
        selected=[int(i) for i in order[:n]],
        weights=weights,
        kl=min(max(math.log(k) - _entropy(weights), 0.0), math.log(k)),
    )


def _entropy(weights: NDArray[np.float64]) -> float:
    positive = weights[weights > 0]
    return float(-(positive * np.log(positive)).sum())
