"""From scores and equal answers to a choice: the rule of a vote. Pure, as ``resampling`` is.

Candidates with equal answers are a class, which the scores of all of them support:

    S_c = log sum over i in c of exp(score_i)

Scores are in units of their own standard deviation within a prompt, so that a candidate one above
another counts e times as much. A class is drawn by softmax(S_c / beta), and its best candidate is
the answer. At beta 1 a class weighs the sum of exp(score / beta). At other betas that sum is not
the rule: it would draw each class as often as resampling draws a candidate of it, and at a small
beta, which is the usual one, the best candidate would outvote all others.

Candidates without an answer are of no class. They are chosen where nobody has an answer, by
resampling, and after all others where more are to be chosen than have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import ScoreError
from qprobe.probe.resampling import softmax, softmax_resample

__all__ = ["NO_CLASS", "VoteDraw", "draw_vote", "vote_weights"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The class of a candidate without an answer.
NO_CLASS = -1
# Of support that counts: classes of the same scores tie, in whatever order these are added up.
_DIGITS = 12


@dataclass(frozen=True)
class VoteDraw:
    """A choice among k candidates by a vote.

    Attributes:
        selected: Indices of the chosen candidates, in the order drawn; all different.
        weights: Shape (k,), float64. Each candidate's probability to be the first.
        class_weights: Shape (classes,), float64. Each class's probability to be drawn first; none
            if nobody has an answer.
    """

    selected: list[int]
    weights: Floats
    class_weights: Floats


def draw_vote(
    scores: Sequence[float] | Floats,
    classes: Sequence[int] | Ints,
    beta: float,
    n: int,
    rng: np.random.Generator,
) -> VoteDraw:
    """Draw n of k candidates: of each class drawn its best.

    Classes are drawn without replacement, as candidates are by ``softmax_resample``. Once all have
    given their best they give their second best, in the same order, and so on. Within a class equal
    scores are drawn evenly.

    Args:
        scores: Shape (k,), finite, in units of their standard deviation within the prompt.
        classes: Shape (k,): 0, 1, 2 ... without a gap, or NO_CLASS.
        beta: In units of score, 0 <= beta. 0 takes the class of most support, ties broken evenly at
            random; infinity draws classes evenly.
        n: How many to draw, 1 <= n <= k.
        rng: Advanced.

    Raises:
        ScoreError: An argument is not as said above.
    """
    values, of = np.asarray(scores, dtype=np.float64), np.asarray(classes, dtype=np.int64)
    others = softmax_resample(values, beta, values.size, rng).selected  # checks scores and beta
    if not 1 <= n <= values.size:
        raise ScoreError(f"n must be from 1 to the {values.size} candidates, got {n!r}")
    numbers = np.unique(of[of != NO_CLASS])
    if of.shape != values.shape or numbers.tolist() != list(range(numbers.size)):
        raise ScoreError(
            f"classes must be 0, 1, 2 ... or {NO_CLASS}, one for each of {values.size} candidates, "
            f"got {of.tolist()}"
        )
    order: list[int] = []
    if numbers.size:
        support = _support(values, of)[[int(np.argmax(of == each)) for each in numbers]]
        drawn = softmax_resample(support, beta, numbers.size, rng).selected
        best_first = softmax_resample(values, 0, values.size, rng).selected
        members = [[index for index in best_first if of[index] == each] for each in drawn]
        ranks = range(max(map(len, members)))
        order = [each[rank] for rank in ranks for each in members if rank < len(each)]
    order += [index for index in others if of[index] == NO_CLASS]
    weights = vote_weights(values, of, beta)
    return VoteDraw(
        selected=order[:n],
        weights=weights,
        class_weights=np.array([weights[of == each].sum() for each in numbers]),
    )


def vote_weights(scores: Floats, classes: Ints, beta: float) -> Floats:
    """Return each candidate's probability to be the first answer of a vote, over the last axis.

    Args:
        scores: Shape (..., k), finite, in units of their standard deviation within the prompt.
        classes: Shape (..., k): equal numbers for equal answers, or NO_CLASS.
        beta: In units of score, 0 <= beta.

    Returns:
        Shape (..., k). Those of a class's best share its probability evenly.
    """
    has_class = classes != NO_CLASS
    support = _support(scores, classes)
    # Of the best of each class its support, and minus infinity of all others.
    same = classes[..., :, None] == classes[..., None, :]  # (..., k, k)
    is_best = has_class & (scores >= np.where(same, scores[..., None, :], -np.inf).max(axis=-1))
    num_best = (same & is_best[..., None, :]).sum(axis=-1).clip(1)  # (..., k)
    most = support.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        logits = np.where(support == most, 0.0, support - most)
        shares = (logits == 0).astype(float) if beta == 0 else np.exp(logits / beta)
    shares = np.where(is_best, shares / num_best, 0.0)
    totals = shares.sum(axis=-1, keepdims=True)
    is_vote = has_class.any(axis=-1, keepdims=True)
    return np.where(is_vote, shares / np.where(is_vote, totals, 1.0), softmax(scores, beta))


def _support(scores: Floats, classes: Ints) -> Floats:
    """Return S_c of each candidate's class: (..., k); minus infinity without one."""
    same = classes[..., :, None] == classes[..., None, :]  # (..., k, k)
    each = np.where(same, scores[..., None, :], -np.inf)
    best = each.max(axis=-1)  # (..., k), finite: everyone is of one's own class
    support = best + np.log(np.exp(each - best[..., None]).sum(axis=-1)).round(_DIGITS)
    return np.where(classes == NO_CLASS, -np.inf, support)
