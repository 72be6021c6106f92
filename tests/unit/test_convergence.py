"""Method check: resampling among k samples of p0 tends to p* ~ p0 exp(Q / beta) as k grows.

The law of the answer is exact: a sum over all counts of k samples among m actions, each with its
multinomial probability and with the weights that ``softmax_resample`` gives to those k scores.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multinomial

from qprobe import softmax_resample

Vector = NDArray[np.float64]
KS = (1, 4, 16, 64, 256)
# 3 actions give 33,153 counts at k = 256; 6 actions give 21 million, so those stop at k = 8.
P0 = np.array([0.6, 0.3, 0.1])
Q = np.array([0.0, 0.5, 1.0])
BETA = 0.5
P0_OF_SIX = np.array([0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
Q_OF_SIX = np.array([0.1, -0.4, 0.6, 0.0, 0.9, -1.0])


def all_counts(k: int, m: int) -> Iterator[tuple[int, ...]]:
    if m == 1:
        yield (k,)
        return
    for first in range(k + 1):
        for rest in all_counts(k - first, m - 1):
            yield (first, *rest)


def policy_of_counts(counts: tuple[int, ...], q: Vector, beta: float) -> Vector:
    """Probability of each action when one of the samples is chosen by the package's rule."""
    actions = np.repeat(np.arange(len(q)), counts)
    weights = softmax_resample(q[actions], beta, 1, np.random.default_rng(0)).weights
    return np.bincount(actions, weights=weights, minlength=len(q)).astype(np.float64)


def exact_law(p0: Vector, q: Vector, *, beta: float, k: int) -> Vector:
    counts = list(all_counts(k, len(q)))
    chances = multinomial.pmf(np.array(counts), k, p0)
    # What is left out has a probability below 33,153e-14 in all; it would take seconds.
    likely = np.flatnonzero(chances > 1e-14)
    policies = np.array([policy_of_counts(counts[i], q, beta) for i in likely])
    assert chances[likely].sum() == pytest.approx(1, abs=1e-9)
    return np.asarray(chances[likely] @ policies)


def limit(p0: Vector, q: Vector, beta: float) -> Vector:
    powers = p0 * np.exp(q / beta)
    return np.asarray(powers / powers.sum())


def leading_term(p0: Vector, q: Vector, beta: float) -> Vector:
    """Limit of k (law - p*): the delta method to second order.

    The answer's law is E[g(F)], F being the frequencies of k samples and g_a(f) = f_a u_a / (f.u)
    with u = exp(Q / beta). E F = p0 and k Cov F = diag(p0) - p0 p0', so that k (E g - g(p0)) tends
    to half the trace of Cov times the Hessian. With u scaled so that p0.u = 1 the Hessian of g_a is
    H_ij = -u_a (d_ai u_j + d_aj u_i) + 2 p*_a u_i u_j, which gives p*_a (sum_i p0_i u_i^2 - u_a).
    """
    u = np.exp(q / beta)
    u = u / (p0 @ u)
    return np.asarray(p0 * u * (p0 @ u**2 - u))


def distance(law: Vector, other: Vector) -> float:
    """Total variation."""
    return float(np.abs(law - other).sum() / 2)


@pytest.fixture(scope="module")
def laws() -> dict[int, Vector]:
    return {k: exact_law(P0, Q, beta=BETA, k=k) for k in KS}


def test_one_sample_is_the_base_model(laws: dict[int, Vector]) -> None:
    assert laws[1].tolist() == pytest.approx(P0.tolist(), abs=1e-12)
    one = exact_law(P0_OF_SIX, Q_OF_SIX, beta=0.1, k=1)
    assert one.tolist() == pytest.approx(P0_OF_SIX.tolist(), abs=1e-12)


def test_the_law_comes_closer_with_every_k(laws: dict[int, Vector]) -> None:
    distances = [distance(laws[k], limit(P0, Q, BETA)) for k in KS]
    assert all(later < earlier / 2 for earlier, later in itertools.pairwise(distances))


def test_six_actions_come_closer_with_every_k() -> None:
    target = limit(P0_OF_SIX, Q_OF_SIX, 0.5)
    distances = [
        distance(exact_law(P0_OF_SIX, Q_OF_SIX, beta=0.5, k=k), target) for k in (1, 2, 4, 8)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 3


def test_the_rate_is_one_over_k_with_the_constant_of_theory(laws: dict[int, Vector]) -> None:
    """k (law - p*) = leading term + O(1 / k).

    So what is left of k (law - p*) falls by 4 when k grows by 4, up to the next order: between 3
    and 5 from k = 16 to 64 and from 64 to 256. At k = 256 it is below 2 % of the term itself.
    """
    term = leading_term(P0, Q, BETA)
    rest = {k: distance(k * (laws[k] - limit(P0, Q, BETA)), term) for k in KS}
    assert 3 < rest[16] / rest[64] < 5
    assert 3 < rest[64] / rest[256] < 5
    assert rest[256] < 0.02 * np.abs(term).sum() / 2


def test_the_leading_term_is_half_the_trace_of_covariance_and_hessian() -> None:
    """The closed form against finite differences of g, whose step 1e-4 leaves errors near 1e-7."""
    u = np.exp(Q / BETA)
    covariance = np.diag(P0) - np.outer(P0, P0)
    h = 1e-4

    def g(f: Vector) -> Vector:
        return np.asarray(f * u / (f @ u))

    found = np.zeros(3)
    for i, j in np.ndindex(3, 3):
        a, b = h * np.eye(3)[i], h * np.eye(3)[j]
        hessian = (g(P0 + a + b) - g(P0 + a - b) - g(P0 - a + b) + g(P0 - a - b)) / (4 * h * h)
        found += covariance[i, j] * hessian / 2
    assert found.tolist() == pytest.approx(leading_term(P0, Q, BETA).tolist(), abs=1e-5)


def test_beta_decides_the_limit() -> None:
    """The law at k = 64 is far nearer to its own limit than to that of twice the beta."""
    law = exact_law(P0, Q, beta=BETA, k=64)
    assert distance(law, limit(P0, Q, BETA)) < distance(law, limit(P0, Q, 2 * BETA)) / 5
    assert math.isclose(float(law.sum()), 1, rel_tol=1e-9)
