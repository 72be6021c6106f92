"""The expected reward of choosing among k of a prompt's n samples, without drawing the choice.

A prompt's value is the mean over its subsets of k samples. It is exact when k is 1 or n, when there
are at most ``NUM_SUBSETS`` subsets, and for every k when beta is 0 or infinite. Otherwise it is the
mean over at least as many random subsets, the same for every score, so that methods are compared
on the same luck. They are balanced: every sample is in as many of them as any other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from qprobe.errors import EvaluationError
from qprobe.probe.resampling import divergence, softmax
from qprobe.probe.voting import NO_CLASS, vote_weights

__all__ = [
    "NUM_SUBSETS",
    "Expectation",
    "expect",
    "expected_rewards",
    "expected_vote_rewards",
    "list_subsets",
]

NUM_SUBSETS = 512
_SEED = 20240713
# Of the largest array at a time: 8 MB of float64. 32 MB took 2.5 times as long on a small machine.
_MAX_ELEMENTS = 2**20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Expectation:
    """What a way of choosing comes to, by prompt. Every array has shape (prompts,), float64.

    Attributes:
        rewards: Expected reward.
        kl: In nats, 0 <= kl <= log k: the mean over subsets of log k - H(weights), as in Draw.
        errors: Standard error of ``rewards`` by the random subsets; 0 where they are exact.
    """

    rewards: Floats
    kl: Floats
    errors: Floats


def expected_rewards(
    scores: ArrayLike, rewards: ArrayLike, groups: Ints, *, k: int, beta: float
) -> Floats:
    """Return the ``rewards`` of ``expect``: shape (prompts,), in order of the prompts that occur.

    Arguments and errors are those of ``expect``. Fast where beta is 0 or infinite.
    """
    if beta not in (0, math.inf):
        return expect(scores, rewards, groups, k=k, beta=beta).rewards
    score, reward, groups = _check(scores, rewards, groups, k)
    return _best_rewards(score if beta == 0 else np.zeros_like(score), reward, groups, k)


def expect(
    scores: ArrayLike, rewards: ArrayLike, groups: Ints, *, k: int, beta: float
) -> Expectation:
    """Average sum_i softmax(score / beta)_i reward_i over subsets of k of each prompt's samples.

    The rule is that of Li et al. 2024, section 3.

    Args:
        scores: Shape (samples,), finite, comparable within one prompt only.
        rewards: Shape (samples,), finite.
        groups: Shape (samples,): the prompt of each sample, non-decreasing; gaps are allowed.
        k: How many samples to choose among, from 1 to the fewest samples of a prompt.
        beta: In units of score, 0 <= beta. 0 takes the best, ties split evenly; infinity is the
            base model.

    Raises:
        EvaluationError: An argument is not as said above; it is named.
    """
    score, reward, groups = _check(scores, rewards, groups, k)
    if not beta >= 0:
        raise EvaluationError("beta", f"must be at least 0, got {beta!r}")
    found = np.empty((3, int(groups[-1]) + 1))
    for prompts, picks, num_repeats in list_subsets(groups, k):
        weights = softmax(score[picks], beta)  # (prompts, subsets, k)
        values = (weights * reward[picks]).sum(axis=-1)  # (prompts, subsets)
        found[0, prompts] = values.mean(axis=-1)
        found[1, prompts] = divergence(weights).mean(axis=-1)
        found[2, prompts] = _standard_error(values, num_repeats)
    if beta in (0, math.inf):
        found[0], found[2] = expected_rewards(score, reward, groups, k=k, beta=beta), 0
    return Expectation(*found)


def expected_vote_rewards(
    scores: ArrayLike,
    classes: Ints,
    rewards: ArrayLike,
    groups: Ints,
    *,
    k: int,
    beta: float,
    ranks: Ints | None = None,
) -> Floats:
    """Expected reward of a vote among k samples, by the rule of ``qprobe.probe.voting``.

    With equal scores and beta 0 it is the answer that most of them give (self-consistency; Wang et
    al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in Language Models").

    Args:
        scores: As in ``expect``, as are ``rewards``, ``groups``, ``k``, ``beta`` and what is
            raised.
        classes: Shape (samples,): equal numbers for equal answers to one prompt, or NO_CLASS.
        rewards: Shape (samples,).
        groups: Shape (samples,).
        k: How many samples vote.
        beta: In units of score.
        ranks: Shape (samples,), if they have any: of the k only those of the highest rank among
            them are of a class.

    Returns:
        Shape (prompts,), float64.
    """
    score, reward, groups = _check(scores, rewards, groups, k)
    found = np.empty(int(groups[-1]) + 1)
    for prompts, picks, _ in list_subsets(groups, k):
        for prompt, pick in zip(prompts, picks, strict=True):  # one by one: k times the memory
            of = classes[pick]  # (subsets, k)
            if ranks is not None:
                rank = ranks[pick]
                of = np.where(rank == rank.max(axis=-1, keepdims=True), of, NO_CLASS)
            weights = vote_weights(score[pick], of, beta)  # (subsets, k)
            found[prompt] = (weights * reward[pick]).sum(axis=-1).mean()
    return found


def _check(
    scores: ArrayLike, rewards: ArrayLike, groups: Ints, k: int
) -> tuple[Floats, Floats, Ints]:
    score = _check_values("scores", scores, groups)
    reward = _check_values("rewards", rewards, groups)
    groups = _renumber(groups)
    counts = np.bincount(groups)
    if not 1 <= k <= counts.min():
        prompt = int(counts.argmin())
        raise EvaluationError(
            "k", f"must be from 1 to the n = {counts[prompt]} samples of prompt {prompt}, got {k!r}"
        )
    return score, reward, groups


def _check_values(field: str, values: ArrayLike, groups: Ints) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != groups.shape:
        raise EvaluationError(
            field, f"must have one value for each of {groups.shape} samples, got {array.shape}"
        )
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise EvaluationError(field, f"must be finite, got {array[index]!r} for sample {index}")
    return array


def _renumber(groups: Ints) -> Ints:
    """Number the prompts that occur 0, 1, 2, ..."""
    steps = np.diff(groups)
    if groups.ndim != 1 or groups.size == 0 or (steps < 0).any():
        raise EvaluationError("groups", "must be a non-empty list of numbers that never decrease")
    return np.concatenate([[0], np.cumsum(steps > 0)])


def list_subsets(groups: Ints, k: int) -> Iterator[tuple[Ints, Ints, int]]:
    """Yield the subsets that all expectations are over, some prompts at a time.

    Args:
        groups: Shape (samples,): the prompt of each sample, 0, 1, 2, ... without a gap.
        k: Size of a subset, from 1 to the fewest samples of a prompt.

    Yields:
        Prompts (p,), samples of their subsets (p, subsets, k), and in how many independent repeats
        the subsets are: 0 if they are all that there are.
    """
    counts = np.bincount(groups)
    starts = np.cumsum(counts) - counts
    for n in np.unique(counts):
        subsets, num_repeats = _choose_subsets(int(n), k)  # (subsets, k)
        prompts = np.flatnonzero(counts == n)
        # Samples of one prompt may come in some order, such as best first. Shuffled anew for each
        # prompt, the errors of the subsets cancel over prompts rather than add up.
        noise = np.random.default_rng((_SEED, int(n))).random((len(prompts), int(n)))
        samples = starts[prompts][:, None] + noise.argsort(axis=1)  # (prompts, n)
        size = max(1, _MAX_ELEMENTS // subsets.size)
        for start in range(0, len(prompts), size):
            chunk = slice(start, start + size)
            yield prompts[chunk], samples[chunk][:, subsets], num_repeats


def _choose_subsets(n: int, k: int) -> tuple[Ints, int]:
    """Return subsets (subsets, k) of range(n), and in how many independent repeats: 0 for all.

    Random ones are windows of random orders of range(n) that go round. They start a step apart that
    divides both n and k, so that every sample is in as many windows of an order as any other.
    """
    if math.comb(n, k) <= NUM_SUBSETS:
        return np.array(list(combinations(range(n), k)), dtype=np.int64), 0
    rng = np.random.default_rng((_SEED, n, k))
    starts = np.arange(0, n, math.gcd(n, k))
    windows = (starts[:, None] + np.arange(k)) % n  # (windows, k)
    num_repeats = max(2, math.ceil(NUM_SUBSETS / len(starts)))
    orders = rng.permuted(np.tile(np.arange(n), (num_repeats, 1)), axis=1)  # (repeats, n)
    return orders[:, windows].reshape(-1, k), num_repeats


def _standard_error(values: Floats, num_repeats: int) -> Floats:
    """By the spread between repeats, as windows overlap within one: (prompts, subsets) values."""
    if num_repeats == 0:
        return np.zeros(len(values))
    means = values.reshape(len(values), num_repeats, -1).mean(axis=-1)
    return np.asarray(means.std(axis=-1, ddof=1) / math.sqrt(num_repeats))


def _best_rewards(scores: Floats, rewards: Floats, groups: Ints, k: int) -> Floats:
    """Expected reward of the best by score among k of n, exact, as (prompts,).

    A score that ``below`` others are under and ``upto`` are not above is the best of k with
    probability (C(upto, k) - C(below, k)) / C(n, k), shared by those that are tied with it.
    """
    counts = np.bincount(groups)
    found = np.empty(len(counts))
    for n in np.unique(counts):
        prompts = np.flatnonzero(counts == n)
        rows = np.flatnonzero(np.isin(groups, prompts)).reshape(-1, n)  # (prompts, n)
        below = rankdata(scores[rows], method="min", axis=1).astype(int) - 1
        upto = rankdata(scores[rows], method="max", axis=1).astype(int)
        total = math.comb(int(n), k)
        chance = np.array([math.comb(j, k) / total for j in range(n + 1)])
        weights = (chance[upto] - chance[below]) / (upto - below)
        found[prompts] = (weights * rewards[rows]).sum(axis=1)
    return found
