"""The law of the draw, against exact enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qprobe import ScoreError, beta_for_kl, softmax_resample
from qprobe.probe import resampling
from qprobe.probe.resampling import divergence
from qprobe.probe.schedule import find_losers, rank

SCORES = [0.3, -0.2, 0.9, 0.55, 0.0, -1.0, 0.7, 0.72]
DRAWS = 20_000


def softmax(scores: list[float], beta: float) -> NDArray[np.float64]:
    logits = np.array(scores) / beta
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def frequencies(scores: list[float], beta: float, *, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    drawn = [softmax_resample(scores, beta, 1, rng).selected[0] for _ in range(DRAWS)]
    return np.bincount(drawn, minlength=len(scores)) / DRAWS


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_one_draw_follows_softmax(beta: float) -> None:
    """All k frequencies lie within sqrt(ln(2k/a) / 2N) of softmax, save with probability a.

    Hoeffding and a union bound: N = 20,000, k = 8, a = 1e-9 gives 0.0242. Ignoring beta (as if it
    were 1) or taking the best moves some frequency by more than that at each beta tested.
    """
    bound = math.sqrt(math.log(2 * len(SCORES) / 1e-9) / (2 * DRAWS))
    exact = softmax(SCORES, beta)
    assert np.abs(frequencies(SCORES, beta, seed=1) - exact).max() < bound
    assert np.abs(softmax(SCORES, 1.0) - exact).max() > 2 * bound
    assert 1 - exact.max() > 2 * bound


def test_chi_square_of_many_draws() -> None:
    """Chi-square with 7 degrees of freedom exceeds 53.6 with probability below 3e-9.

    Laurent and Massart 2000, lemma 1: P(X >= d + 2 sqrt(dx) + 2x) <= exp(-x); d = 7, x = 20 gives
    70.7, so that 70.7 is passed with probability at most exp(-20) = 2e-9.
    """
    weights = softmax(SCORES, 0.5)
    observed = frequencies(SCORES, 0.5, seed=2) * DRAWS
    statistic = float((((observed - DRAWS * weights) ** 2) / (DRAWS * weights)).sum())
    assert statistic < 7 + 2 * math.sqrt(7 * 20) + 2 * 20


def test_draws_without_replacement_follow_sequential_softmax() -> None:
    """Pairs of 4 candidates, against enumeration: P(i, j) = w_i * w_j / (1 - w_i).

    12 ordered pairs, N = 20,000, a = 1e-9: Hoeffding's bound is 0.0245.
    """
    scores, beta = [0.1, 0.5, 0.0, 0.4], 0.3
    weights = softmax(scores, beta)
    rng = np.random.default_rng(3)
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for _ in range(DRAWS):
        first, second = softmax_resample(scores, beta, 2, rng).selected
        counts[first, second] += 1
    bound = math.sqrt(math.log(2 * len(counts) / 1e-9) / (2 * DRAWS))
    for (first, second), count in counts.items():
        exact = weights[first] * weights[second] / (1 - weights[first])
        assert abs(count / DRAWS - exact) < bound


def test_beta_zero_takes_the_best_and_breaks_ties_evenly() -> None:
    """Each of 3 tied bests is drawn in a third of N = 20,000 draws, within Hoeffding's 0.0235."""
    tied = [0.5, 2.0, 2.0, -1.0, 2.0]
    found = frequencies(tied, 0.0, seed=4)
    bound = math.sqrt(math.log(2 * 5 / 1e-9) / (2 * DRAWS))
    assert found[0] == found[3] == 0
    assert np.abs(found[[1, 2, 4]] - 1 / 3).max() < bound
    draw = softmax_resample(tied, 0.0, 5, np.random.default_rng(0))
    assert [tied[i] for i in draw.selected] == sorted(tied, reverse=True)
    assert draw.weights.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3])


def test_infinite_beta_is_even() -> None:
    draw = softmax_resample(SCORES, math.inf, 1, np.random.default_rng(0))
    assert draw.weights.tolist() == pytest.approx([1 / 8] * 8)
    assert draw.kl == pytest.approx(0)


def test_kl_is_log_k_minus_entropy() -> None:
    weights = softmax(SCORES, 0.2)
    draw = softmax_resample(SCORES, 0.2, 1, np.random.default_rng(0))
    assert draw.kl == pytest.approx(math.log(8) + (weights * np.log(weights)).sum())
    assert softmax_resample([1.0], 0.2, 1, np.random.default_rng(0)).kl == 0
    assert softmax_resample([1, 2], 0, 1, np.random.default_rng(0)).kl == pytest.approx(math.log(2))


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=12), st.floats(0, 1e3), st.integers(0, 2**32))
def test_properties_of_any_draw(scores: list[float], beta: float, seed: int) -> None:
    k = len(scores)
    draw = softmax_resample(scores, beta, k, np.random.default_rng(seed))
    assert sorted(draw.selected) == list(range(k))
    assert draw.weights.sum() == pytest.approx(1)
    assert 0 <= draw.kl <= math.log(k)
    again = softmax_resample(scores, beta, 1, np.random.default_rng(seed))
    assert again.selected == draw.selected[:1]


@given(st.permutations(range(6)))
def test_reordering_candidates_reorders_weights(order: list[int]) -> None:
    scores = [0.0, 0.1, 0.25, -0.4, 1.0, 0.9]
    rng = np.random.default_rng(0)
    plain = softmax_resample(scores, 0.3, 1, rng).weights
    moved = softmax_resample([scores[i] for i in order], 0.3, 1, rng).weights
    assert moved.tolist() == pytest.approx([plain[i] for i in order])


def test_adding_a_constant_changes_nothing() -> None:
    """0.5 and the scores are sums of powers of two, so that the shift is exact."""
    scores = [0.25, -0.5, 1.0, 0.125]
    plain = softmax_resample(scores, 0.25, 2, np.random.default_rng(5))
    moved = softmax_resample([s + 0.5 for s in scores], 0.25, 2, np.random.default_rng(5))
    assert plain.selected == moved.selected
    assert plain.weights.tolist() == moved.weights.tolist()


def test_a_tiny_beta_takes_the_best() -> None:
    draw = softmax_resample([0.0, 1.0], 5e-324, 1, np.random.default_rng(0))
    assert draw.selected == [1]
    assert draw.weights.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("scores", "beta", "n", "message"),
    [
        ([], 1.0, 1, "non-empty"),
        ([1.0, math.nan], 1.0, 1, r"scores\[1\]"),
        ([1.0, math.inf], 1.0, 1, r"scores\[1\]"),
        ([1.0], -0.1, 1, "beta"),
        ([1.0], math.nan, 1, "beta"),
        ([1.0, 2.0], 1.0, 3, "n must be"),
        ([1.0, 2.0], 1.0, 0, "n must be"),
    ],
)
def test_impossible_draws_are_refused(
    scores: list[float], beta: float, n: int, message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        softmax_resample(scores, beta, n, np.random.default_rng(0))


def kl_at(scores: list[float], beta: float) -> float:
    return softmax_resample(scores, beta, 1, np.random.default_rng(0)).kl


@given(
    scores=st.lists(st.floats(-50, 50), min_size=2, max_size=48),
    share=st.floats(0.001, 0.999),
)
def test_a_target_kl_is_met(scores: list[float], share: float) -> None:
    """Where the best score spends more. Scores closer than 1e-3 would need betas that round."""
    assume(min(np.diff(np.unique(scores)), default=0) > 1e-3)
    target = share * kl_at(scores, 0.0)
    beta = beta_for_kl(scores, target)
    assert 0 < beta < math.inf
    assert kl_at(scores, beta) == pytest.approx(target, abs=1e-9)


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=16),
    targets=st.tuples(st.floats(0, 5), st.floats(0, 5)),
)
def test_more_kl_is_less_beta(scores: list[float], targets: tuple[float, float]) -> None:
    low, high = sorted(targets)
    assert beta_for_kl(scores, low) >= beta_for_kl(scores, high)


def test_targets_at_the_ends() -> None:
    assert beta_for_kl([1.0, 2.0, 3.0], 0.0) == math.inf
    assert beta_for_kl([1.0, 2.0, 3.0], math.log(3)) == 0
    assert beta_for_kl([1.0, 2.0, 3.0], 99.0) == 0
    # Two best ones: the argmax spends log 3 - log 2 and no choice spends more.
    assert beta_for_kl([1.0, 3.0, 3.0], math.log(3 / 2) + 1e-9) == 0
    assert beta_for_kl([5.0, 5.0], 0.1) == 0
    assert beta_for_kl([5.0], 0.1) == 0
    with pytest.raises(ScoreError, match="target_kl"):
        beta_for_kl([1.0], -1.0)
    with pytest.raises(ScoreError, match="target_kl"):
        beta_for_kl([1.0], math.nan)


def test_a_target_kl_by_hand() -> None:
    """Two candidates 1 apart, weights 3/4 and 1/4: the odds are 3, so beta is 1 / log 3."""
    weights = np.array([0.25, 0.75])
    target = math.log(2) + float((weights * np.log(weights)).sum())
    assert beta_for_kl([0.0, 1.0], target) == pytest.approx(1 / math.log(3), rel=1e-7)


@given(
    st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from([0.0, 5e-324, 0.2, math.inf]),
)
def test_many_choices_at_once_are_those_one_by_one(rows: list[list[float]], beta: float) -> None:
    """What evaluation computes over the last axis is the rule that serves requests."""
    weights = resampling.softmax(np.array(rows), beta)
    for row, found, kl in zip(rows, weights, divergence(weights), strict=True):
        draw = softmax_resample(row, beta, 1, np.random.default_rng(0))
        assert (found == draw.weights).all()
        assert kl == draw.kl


def test_the_losers_are_the_last_of_the_ranking_in_many_races_at_once() -> None:
    scores = np.random.default_rng(3).integers(0, 3, (50, 7)).astype(float)
    for race, order in zip(scores, rank(scores), strict=True):
        assert find_losers(race.tolist(), 3) == sorted(order[3:])
        assert (race[order] == sorted(race, reverse=True)).all()
