"""The replay of early rejection: by brute force, and what cannot be otherwise."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qprobe.errors import EvaluationError
from qprobe.evaluation import expectation
from qprobe.evaluation.expectation import expect
from qprobe.probe.schedule import Schedule, Step, find_losers
from qprobe.rejection.choice import choose_schedule, list_schedules
from qprobe.rejection.measures import judge_schedule, measure_schedule
from qprobe.rejection.simulation import Outcome, ScoredSamples, simulate

CHECKPOINTS = (4, 8, 16)
NUM_PROMPTS, N = 4, 6
BETA = 0.3


def make_samples(
    seed: int, *, n: int = N, num_prompts: int = NUM_PROMPTS, ties: bool = False
) -> ScoredSamples:
    """Lengths from 1 to 24, so that some end before each checkpoint."""
    rng = np.random.default_rng(seed)
    size = num_prompts * n

    def draw() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return rng.integers(0, 3, size).astype(float) if ties else rng.normal(size=size)

    return ScoredSamples(
        final=draw(),
        heads={tokens: draw() for tokens in CHECKPOINTS},
        num_tokens=rng.integers(1, 25, size),
        rewards=rng.random(size),
        groups=np.repeat(np.arange(num_prompts), n),
    )


def race(samples: ScoredSamples, start: list[int], schedule: Schedule) -> tuple[float, float]:
    """Return expected reward and tokens of one race, as the server runs it, candidate by candidate.

    The rule of a step is the server's own, ``find_losers``.
    """
    alive, spent = list(start), 0
    for step in schedule:
        losers = find_losers([float(samples.heads[step.tokens][i]) for i in alive], step.keep)
        spent += sum(
            min(int(samples.num_tokens[alive[place]]), step.tokens + 1) for place in losers
        )
        alive = [each for place, each in enumerate(alive) if place not in losers]
    spent += sum(int(samples.num_tokens[each]) for each in alive)
    best = max(samples.final[each] for each in alive)
    weights = [math.exp((samples.final[each] - best) / BETA) for each in alive]
    earned = sum(w * samples.rewards[each] for w, each in zip(weights, alive, strict=True))
    return earned / sum(weights), spent


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    tokens = sorted(draw(st.sets(st.sampled_from(CHECKPOINTS))))
    size = len(tokens)
    keeps = draw(st.lists(st.integers(1, N + 1), min_size=size, max_size=size))
    return tuple(map(Step, tokens, sorted(keeps, reverse=True)))


seeds = st.integers(0, 10_000)
sizes = st.integers(1, N)


def run(samples: ScoredSamples, schedule: Schedule, *, k: int) -> Outcome:
    (found,) = simulate(samples, [schedule], k=k, beta=BETA)
    return found


@settings(max_examples=60, deadline=None)
@given(seeds, sizes, st.lists(schedules(), min_size=1, max_size=5))
def test_it_is_the_mean_over_all_subsets(seed: int, k: int, wanted: list[Schedule]) -> None:
    """By a loop over C(6, k) subsets; several schedules at once share steps and must not mix."""
    samples = make_samples(seed)
    found = simulate(samples, wanted, k=k, beta=BETA)
    for schedule, outcome in zip(wanted, found, strict=True):
        for prompt in range(NUM_PROMPTS):
            members = range(prompt * N, (prompt + 1) * N)
            races = [race(samples, list(start), schedule) for start in combinations(members, k)]
            rewards, tokens = np.mean(races, axis=0)
            assert outcome.rewards[prompt] == pytest.approx(rewards)
            assert outcome.tokens[prompt] == pytest.approx(tokens)


@settings(max_examples=40, deadline=None)
@given(seeds, schedules())
def test_of_equal_scores_the_former_stays(seed: int, schedule: Schedule) -> None:
    """As in the server, whose candidates have the order of the subset: here of all."""
    samples = make_samples(seed, ties=True)
    found = run(samples, schedule, k=N)
    subsets = list(expectation.list_subsets(samples.groups, N))
    for prompts, picks, _ in subsets:
        for prompt, (start,) in zip(prompts, picks.tolist(), strict=True):
            reward, tokens = race(samples, start, schedule)
            assert found.rewards[prompt] == pytest.approx(reward)
            assert found.tokens[prompt] == tokens


@pytest.mark.parametrize("beta", [0.0, 0.2, math.inf])
@pytest.mark.parametrize(("n", "k"), [(6, 3), (20, 7)])
def test_without_a_step_it_is_what_expect_says(n: int, k: int, beta: float) -> None:
    samples = make_samples(1, n=n)
    plain = expect(samples.final, samples.rewards, samples.groups, k=k, beta=beta).rewards
    mean_tokens = samples.num_tokens.reshape(-1, n).mean(axis=1)
    every = simulate(samples, [(), (Step(4, k),), (Step(4, k + 3), Step(8, k))], k=k, beta=beta)
    for found in every:  # nor does a step that keeps all change a thing
        assert (found.rewards == plain).all()
        assert found.tokens == pytest.approx(k * mean_tokens)


@settings(max_examples=60, deadline=None)
@given(seeds, sizes, schedules())
def test_tokens_never_rise_with_a_step_more_or_a_lower_keep(
    seed: int, k: int, schedule: Schedule
) -> None:
    """For a last step: whoever it drops stops, and nobody else is touched."""
    samples = make_samples(seed)
    before = run(samples, schedule, k=k).tokens
    *first, last = schedule or (Step(CHECKPOINTS[-1], N),)
    fewer = run(samples, (*first, Step(last.tokens, max(1, last.keep - 1))), k=k).tokens
    assert (fewer <= before + 1e-9).all()
    without = run(samples, tuple(first), k=k).tokens
    assert (before <= without + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(seeds, sizes, schedules())
def test_the_order_and_the_level_of_scores_do_not_matter(
    seed: int, k: int, schedule: Schedule
) -> None:
    samples = make_samples(seed)
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.arange(NUM_PROMPTS * N).reshape(NUM_PROMPTS, N), axis=1).ravel()
    moved = ScoredSamples(
        samples.final[order] + 7,
        {tokens: 3 * head[order] - 5 for tokens, head in samples.heads.items()},
        samples.num_tokens[order],
        samples.rewards[order],
        samples.groups,
    )
    one, other = (run(each, schedule, k=k) for each in (samples, moved))
    assert one.rewards == pytest.approx(other.rewards)
    assert one.tokens == pytest.approx(other.tokens)


def test_who_leaves_has_one_token_more_than_was_compared() -> None:
    """Of lengths 3, 4, 5 and 30, all but the last leave after 4 tokens: 3 + 4 + 5 + 30."""
    zeros = np.zeros(4)
    samples = ScoredSamples(
        zeros, {4: np.array([0.0, 1, 2, 3])}, np.array([3, 4, 5, 30]), zeros, np.zeros(4, np.int64)
    )
    assert run(samples, (Step(4, 1),), k=4).tokens.tolist() == [42]
    assert run(samples, (Step(4, 2),), k=4).tokens.tolist() == [42]
    longer = ScoredSamples(zeros, samples.heads, np.full(4, 30), zeros, samples.groups)
    assert run(longer, (Step(4, 1),), k=4).tokens.tolist() == [3 * 5 + 30]


def test_random_subsets_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """C(12, 6) = 924 subsets: 512 of them against all, over 40 prompts.

    Rewards are from 0 to 1, so that a mean over 256 independent pairs of windows errs by a standard
    error of at most 1 / (2 sqrt(256 * 40)) = 0.005; 5 of those are allowed.
    """
    samples = make_samples(3, n=12, num_prompts=40)
    schedule = (Step(4, 4), Step(8, 2))
    some = run(samples, schedule, k=6).rewards.mean()
    monkeypatch.setattr(expectation, "NUM_SUBSETS", 1000)
    assert some == pytest.approx(run(samples, schedule, k=6).rewards.mean(), abs=0.025)


def test_what_does_not_go_together_is_named() -> None:
    good = make_samples(6)
    with pytest.raises(EvaluationError, match=r"heads\.4: must be 24 finite numbers"):
        ScoredSamples(good.final, {4: np.zeros(3)}, good.num_tokens, good.rewards, good.groups)
    with pytest.raises(EvaluationError, match="k: must be from 1 to the n = 6 samples"):
        run(good, (), k=7)


def test_the_grid_has_falling_keeps_below_k() -> None:
    found = list_schedules([8, 4], k=3)
    steps = [[(step.tokens, step.keep) for step in schedule] for schedule in found]
    assert steps == [[], [(4, 2)], [(4, 1)], [(8, 2)], [(8, 1)], [(4, 2), (8, 1)]]
    assert list_schedules([4, 8], k=1) == [()]
    assert len(list_schedules(range(1, 8), k=16)) == 3_760


def test_the_choice_is_the_best_within_the_budget_or_the_cheapest_that_is_good_enough() -> None:
    """Checked against all schedules, one by one."""
    samples = make_samples(7, num_prompts=10)
    every = [
        (each.rewards.mean(), each.tokens.mean())
        for each in simulate(samples, list_schedules(CHECKPOINTS, k=N), k=N, beta=BETA)
    ]
    whole = every[0][1]
    for budget in (0.5, 0.7, 1.0):
        chosen = choose_schedule(samples, k=N, beta=BETA, budget=budget).chosen
        assert chosen.reward == max(reward for reward, cost in every if cost <= budget * whole)
    target = float(np.median([reward for reward, _ in every]))
    chosen = choose_schedule(samples, k=N, beta=BETA, reward=target).chosen
    assert chosen.tokens == min(cost for reward, cost in every if reward >= target)


def test_goals_out_of_reach_say_what_is_in_reach() -> None:
    samples = make_samples(8)
    with pytest.raises(EvaluationError, match="budget: must be at least 0") as refused:
        choose_schedule(samples, k=N, beta=BETA, budget=0.01)
    offered = float(str(refused.value).split("at least ")[1].split(",")[0])
    choose_schedule(samples, k=N, beta=BETA, budget=offered)
    with pytest.raises(EvaluationError, match="reward: must be at most 0") as refused:
        choose_schedule(samples, k=N, beta=BETA, reward=2.0)
    offered = float(str(refused.value).split("at most ")[1].split(",")[0])
    choose_schedule(samples, k=N, beta=BETA, reward=offered)
    with pytest.raises(EvaluationError, match=r"budget: must be at least 1\.0"):
        choose_schedule(samples, k=1, beta=BETA, budget=0.4)  # there is nobody to drop


def test_measures_are_of_the_unseen_prompts() -> None:
    chosen_on, unseen = make_samples(9, num_prompts=8), make_samples(10, num_prompts=7)
    choice = choose_schedule(chosen_on, k=4, beta=BETA, budget=0.8)
    found = measure_schedule(choice, chosen_on, unseen, k=4, beta=BETA)
    outcome = run(unseen, choice.chosen.schedule, k=4)
    row = found["chosen"]["unseen"]
    assert row["reward"] == pytest.approx(outcome.rewards.mean())
    assert row["low"] <= row["reward"] <= row["high"]
    assert row["tokens"] == pytest.approx(outcome.tokens.mean())
    assert [each["k"] for each in found["best_of_k"]] == list(range(1, N + 1))
    full = found["best_of_k"][3]
    assert row["tokens_share"] == pytest.approx(row["tokens"] / full["tokens"])
    assert row["minus_best_of_k"]["difference"] == pytest.approx(row["reward"] - full["reward"])
    assert found["num_prompts"] == {"choice": 8, "unseen": 7}
    for figure in ("tokens", "reward"):
        values = [each[figure] for each in found["frontier"]]
        assert values == sorted(values)


def test_prompts_that_ask_the_same_count_once_in_intervals() -> None:
    """Of 30 prompts each given 4 times the intervals are those of the 30, not narrower ones."""
    chosen_on, plain = make_samples(11, num_prompts=8), make_samples(12, num_prompts=30)
    choice = choose_schedule(chosen_on, k=4, beta=BETA, budget=0.8)
    once = ScoredSamples(
        final=np.tile(plain.final, 4),
        heads={tokens: np.tile(head, 4) for tokens, head in plain.heads.items()},
        num_tokens=np.tile(plain.num_tokens, 4),
        rewards=np.tile(plain.rewards, 4),
        groups=np.repeat(np.arange(120), N),
        questions=np.tile(np.arange(30), 4),
    )
    apart = replace(once, questions=None)
    widths = []
    for samples in (once, apart):
        found = measure_schedule(choice, chosen_on, samples, k=4, beta=BETA)
        assert found["num_questions"] == (120 if samples.questions is None else 30)
        row = judge_schedule(samples, choice.chosen.schedule, k=4, beta=BETA)
        assert row["low"] == found["chosen"]["unseen"]["low"]
        widths.append(row["high"] - row["low"])
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.2)
