"""From scores to a choice: the softmax resampling rule. Pure: no I/O, no globals, no engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import ScoreError

__all__ = ["Draw", "beta_for_kl", "divergence", "softmax", "softmax_resample"]


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
    values = _check(scores)
    if not beta >= 0:
        raise ScoreError(f"beta must be at least 0, got {beta!r}")
    k = values.size
    if not 1 <= n <= k:
        raise ScoreError(f"n must be from 1 to the {k} candidates, got {n!r}")

    noise = rng.gumbel(size=k)
    weights = softmax(values, beta)
    logits = values if beta == 0 else _quotients(values, beta) + noise
    order = np.lexsort((noise, logits))[::-1]
    return Draw(
        selected=[int(i) for i in order[:n]], weights=weights, kl=float(divergence(weights))
    )


def beta_for_kl(scores: Sequence[float] | NDArray[np.floating], target_kl: float) -> float:
    """Solve for the beta at which resampling these scores spends so much KL.

    log k - H(softmax(scores / beta)) falls from log k - log(number of best scores) at beta 0 to 0
    at infinity, so that bisection finds the only solution, to the last bit of beta.

    Args:
        scores: Shape (k,), finite.
        target_kl: In nats, >= 0.

    Returns:
        In units of score: infinity for a target of 0, and 0 for one that is out of reach: at least
        what taking the best spends.

    Raises:
        ScoreError: There is no score, one is not finite, or the target is negative.
    """
    values = _check(scores)
    if not target_kl >= 0:
        raise ScoreError(f"target_kl must be at least 0, got {target_kl!r}")
    if target_kl == 0:
        return math.inf
    if target_kl >= divergence(softmax(values, 0.0)):
        return 0.0
    # Exponents of 2: floats have no more.
    low, high = -1074.0, 1023.0
    while low < (middle := (low + high) / 2) < high:
        if divergence(softmax(values, math.exp2(middle))) > target_kl:
            low = middle
        else:
            high = middle
    return math.exp2(low)


def _check(scores: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ScoreError(f"scores must be a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(f"scores[{index}] is {values[index]!r}, which is not finite")
    return values


def softmax(scores: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Return the weights of a choice over the last axis; at beta 0 the best share evenly.

    Args:
        scores: Shape (..., k), finite.
        beta: In units of score, 0 <= beta.
    """
    if beta == 0:
        weights = (scores == scores.max(axis=-1, keepdims=True)).astype(float)
    else:
        weights = np.exp(_quotients(scores, beta))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def divergence(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log k - H(weights) over the last axis, in nats: shape (..., k) to (...)."""
    terms = weights * np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    most = math.log(weights.shape[-1])
    return np.asarray((most + terms.sum(axis=-1)).clip(0, most))


def _quotients(scores: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    # A tiny beta may overflow the quotient: -inf is a weight of 0, and the best is always 0.
    with np.errstate(over="ignore"):
        return np.asarray((scores - scores.max(axis=-1, keepdims=True)) / beta)
