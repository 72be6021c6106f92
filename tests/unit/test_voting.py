"""The rule of a vote, against an enumeration of all that may be drawn."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
import pytest

from qprobe import ScoreError
from qprobe.probe.voting import NO_CLASS, draw_vote, vote_weights

N = NO_CLASS
# The largest class, the best candidate and the heaviest class are three; ties in and between them.
CASES = [
    ([0.3, -1.0, 1.2, 0.9], [0, 0, 1, 0]),
    ([0.0, 0.0, 0.0, 0.0, 0.0], [0, 1, 0, 1, 2]),
    ([1.5, 1.5, -0.5, 2.0, 0.0], [1, 1, 0, N, 0]),
    ([2.0, 0.1, 0.2], [N, 0, N]),
    ([0.5, -0.5, 0.5], [N, N, N]),
    ([7.0], [0]),
    ([0.25, 0.5, 1.0, 1.0, 0.5, 0.25], [0, 0, 0, 1, 1, 1]),
]
BETAS = (0.0, 0.1, 1.0, 3.0)


def orders_of(weights: dict[int, float], beta: float) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield orders of keys drawn one after another by softmax(weight / beta), with their chance."""
    for order in permutations(weights):
        chance, left = 1.0, dict(weights)
        for each in order:
            best = max(left.values())
            if beta == 0:
                parts = {key: float(value == best) for key, value in left.items()}
            else:
                parts = {key: math.exp((value - best) / beta) for key, value in left.items()}
            chance *= parts[each] / sum(parts.values())
            del left[each]
        if chance:
            yield order, chance


def enumerate_votes(
    scores: Sequence[float], classes: Sequence[int], beta: float
) -> dict[tuple[int, ...], float]:
    """Return every order of all candidates and its probability, straight from the rule's words."""
    members: dict[int, list[int]] = {}
    for index, each in enumerate(classes):
        if each != N:
            members.setdefault(each, []).append(index)
    support = {
        each: round(math.log(math.fsum(math.exp(scores[i]) for i in inside)), 9)
        for each, inside in members.items()
    }
    without = {index: scores[index] for index, each in enumerate(classes) if each == N}
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for drawn, chance in orders_of(support, beta):
        within = [list(orders_of({i: scores[i] for i in members[each]}, 0.0)) for each in drawn]
        for ranked in product(*within):
            sizes = [len(order) for order, _ in ranked]
            first = [
                order[rank]
                for rank in range(max(sizes, default=0))
                for order, _ in ranked
                if rank < len(order)
            ]
            for rest, last in orders_of(without, beta):
                whole = chance * math.prod(each for _, each in ranked) * last
                found[(*first, *rest)] += whole
    return found


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("scores", "classes"), CASES)
def test_weights_are_those_of_the_enumeration(
    scores: list[float], classes: list[int], beta: float
) -> None:
    orders = enumerate_votes(scores, classes, beta)
    firsts = [
        math.fsum(p for order, p in orders.items() if order[0] == i) for i in range(len(scores))
    ]
    drawn = draw_vote(scores, classes, beta, 1, np.random.default_rng(0))
    assert drawn.weights == pytest.approx(firsts, abs=1e-9)
    by_class = [
        math.fsum(firsts[i] for i, of in enumerate(classes) if of == each)
        for each in range(max(classes) + 1)
    ]
    assert drawn.class_weights == pytest.approx(by_class, abs=1e-9)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("scores", "classes"), CASES)
def test_draws_are_as_often_as_the_enumeration_says(
    scores: list[float], classes: list[int], beta: float
) -> None:
    """By Hoeffding and a union bound all frequencies lie within sqrt(ln(2m/a) / 2N).

    m = 720 orders at most, N = 1,200 and a = 1e-9 give 0.108: the likely bugs (second bests in
    another order, a tie that always falls to one side) move a frequency by more.
    """
    k, num_draws = len(scores), 1_200
    orders = enumerate_votes(scores, classes, beta)
    rng = np.random.default_rng(5)
    counts = Counter(
        tuple(draw_vote(scores, classes, beta, k, rng).selected) for _ in range(num_draws)
    )
    assert set(counts) <= set(orders)
    for order, chance in orders.items():
        assert abs(counts[order] / num_draws - chance) < 0.108


def test_at_beta_1_classes_weigh_the_sum_of_exponents() -> None:
    scores, classes = np.array([0.3, -1.0, 1.2, 0.9]), [0, 0, 1, 0]
    parts = np.exp(scores)
    drawn = draw_vote(scores, classes, 1.0, 1, np.random.default_rng(0))
    assert drawn.class_weights == pytest.approx(
        [(parts.sum() - parts[2]) / parts.sum(), parts[2] / parts.sum()]
    )


def test_many_outvote_the_best_also_at_a_small_beta() -> None:
    """The issue's sum of exp(score / beta) would take the best candidate at beta 0.1."""
    scores, classes = [1.0, 0.8, 0.8, 0.8], [0, 1, 1, 1]
    for beta in (0.0, 0.1):
        assert draw_vote(scores, classes, beta, 1, np.random.default_rng(0)).selected[0] != 0


def test_equal_scores_make_it_a_majority() -> None:
    drawn = draw_vote([0.0] * 5, [0, 1, 1, N, 0], 0.0, 1, np.random.default_rng(0))
    assert drawn.class_weights == pytest.approx([0.5, 0.5])
    assert drawn.weights == pytest.approx([0.25, 0.25, 0.25, 0.0, 0.25])


def test_an_answer_goes_before_none_however_it_scores() -> None:
    drawn = draw_vote([9.0, -9.0, 8.0], [N, 0, N], 0.0, 3, np.random.default_rng(0))
    assert drawn.selected == [1, 0, 2]
    assert drawn.weights.tolist() == [0.0, 1.0, 0.0]


def test_without_answers_it_is_resampling() -> None:
    drawn = draw_vote([0.1, 0.4], [N, N], 0.5, 1, np.random.default_rng(0))
    best = math.exp(0.3 / 0.5)
    assert drawn.weights == pytest.approx([1 / (1 + best), best / (1 + best)])
    assert drawn.class_weights.size == 0


@pytest.mark.parametrize("beta", BETAS)
def test_a_constant_and_an_order_change_nothing(beta: float) -> None:
    rng = np.random.default_rng(1)
    scores, classes = rng.normal(size=8), np.array([0, 1, 0, N, 2, 1, 0, 2])
    weights = vote_weights(scores, classes, beta)
    assert vote_weights(scores + 5, classes, beta) == pytest.approx(weights)
    order = rng.permutation(8)
    assert vote_weights(scores[order], classes[order], beta) == pytest.approx(weights[order])
    renamed = np.where(classes == N, N, 7 - classes)
    assert vote_weights(scores, renamed, beta) == pytest.approx(weights)


def test_many_prompts_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(2)
    scores, classes = rng.normal(size=(3, 5, 6)), rng.integers(-1, 3, size=(3, 5, 6))
    classes[0, 0] = N
    whole = vote_weights(scores, classes, 0.3)
    assert whole.sum(axis=-1) == pytest.approx(np.ones((3, 5)))
    for place in np.ndindex(3, 5):
        assert whole[place] == pytest.approx(vote_weights(scores[place], classes[place], 0.3))


@pytest.mark.parametrize("scale", [1e-300, 1e9, 1e300])
@pytest.mark.parametrize("beta", [0.0, 1e-300, 1.0, 1e300, math.inf])
def test_extreme_numbers_have_weights(scale: float, beta: float) -> None:
    scores = [scale, -scale, 0.0, scale]
    drawn = draw_vote(scores, [0, 1, N, 1], beta, 4, np.random.default_rng(0))
    assert drawn.weights.sum() == pytest.approx(1)
    assert drawn.class_weights.sum() == pytest.approx(1)
    assert sorted(drawn.selected) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("scores", "classes", "n"),
    [
        ([0.0, 1.0], [0], 1),
        ([0.0, 1.0], [0, 2], 1),
        ([0.0, 1.0], [0, -2], 1),
        ([0.0, 1.0], [1, 1], 1),
        ([0.0, 1.0], [0, 0], 3),
        ([0.0, 1.0], [0, 0], 0),
        ([0.0, math.nan], [0, 0], 1),
        ([], [], 1),
    ],
)
def test_what_is_no_vote_is_refused(scores: list[float], classes: list[int], n: int) -> None:
    with pytest.raises(ScoreError):
        draw_vote(scores, classes, 0.1, n, np.random.default_rng(0))
