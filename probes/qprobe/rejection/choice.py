"""Which schedule a probe should recommend, and what it and its rivals come to.

Owns the grid of schedules, the choice among them, and what ``schedule.json`` holds. Two sets of
prompts enter, and neither may have trained the scores that it comes with: one to choose on, and one
that nothing was chosen on, for what to believe of the choice.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, TypeVar

import numpy as np

from qprobe.errors import EvaluationError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expect, expected_rewards
from qprobe.evaluation.metrics import rank_within_prompts
from qprobe.probe.schedule import Schedule, Step, format_schedule
from qprobe.rejection.simulation import (
    Outcome,
    ScoredSamples,
    measure_spreads,
    simulate,
    simulate_adaptive,
)

__all__ = [
    "Choice",
    "Plan",
    "choose_plan",
    "choose_schedule",
    "judge_schedule",
    "list_schedules",
    "measure_schedule",
]

Json = dict[str, Any]
PlanT = TypeVar("PlanT", bound=Hashable)

# With 7 checkpoints and k = 16 that makes 3,760 schedules.
_MAX_STEPS = 3
_KEEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)
_NUM_FIRST = (2, 4, 8)
_QUANTILES = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Plan(Generic[PlanT]):
    """A way to spend tokens, with its mean reward and tokens a prompt where choices are made."""

    what: PlanT
    reward: float
    tokens: float


@dataclass(frozen=True)
class Choice:
    """A schedule that was chosen.

    Attributes:
        chosen: The schedule; empty if dropping nobody is best.
        whole: The empty one: k whole candidates.
        frontier: Those that none beats in both reward and tokens, cheapest first.
        num_tried: How many there were to choose from.
    """

    chosen: Plan[Schedule]
    whole: Plan[Schedule]
    frontier: list[Plan[Schedule]]
    num_tried: int


def list_schedules(checkpoints: Sequence[int], *, k: int) -> list[Schedule]:
    """Return the schedules to choose from: none, one, two or three steps, of falling ``keep``."""
    keeps = sorted((keep for keep in _KEEPS if keep < k), reverse=True)
    return [
        tuple(map(Step, tokens, kept))
        for num_steps in range(_MAX_STEPS + 1)
        for tokens in combinations(sorted(checkpoints), num_steps)
        for kept in combinations(keeps, num_steps)
    ]


def choose_schedule(
    samples: ScoredSamples, *, k: int, beta: float, budget: float = 1.0, reward: float | None = None
) -> Choice:
    """Simulate all schedules of the probe's checkpoints, and take one.

    Args:
        samples: Their heads are the checkpoints.
        k: As in ``simulate``, as is ``beta``.
        beta: In units of the final score, 0 <= beta.
        budget: Take the best reward within this share of the tokens of k whole candidates.
        reward: If given, the cheapest that reaches this mean reward instead.

    Raises:
        EvaluationError: No schedule is so cheap, or so good; or k or beta are out of range.
    """
    schedules = list_schedules(list(samples.heads), k=k)
    outcomes = simulate(samples, schedules, k=k, beta=beta)
    plans = _average(schedules, outcomes)
    frontier, whole = _find_frontier(plans), plans[0]
    if reward is not None:
        good = [plan for plan in frontier if plan.reward >= reward]
        if not good:
            most = math.floor(frontier[-1].reward * 1e4) / 1e4  # rounded so that it works
            raise EvaluationError(
                "reward",
                f"must be at most {most}, the most that a schedule reaches with k = {k} on "
                f"the prompts to choose on, got {reward!r}",
            )
        return Choice(good[0], whole, frontier, len(plans))
    chosen = choose_plan(frontier, max_tokens=budget * whole.tokens)
    if chosen is None:
        cheapest = math.ceil(frontier[0].tokens / whole.tokens * 1e4) / 1e4  # likewise
        raise EvaluationError(
            "budget",
            f"must be at least {cheapest}, the share of the tokens that the cheapest schedule "
            f"{format_schedule(frontier[0].what)!r} takes with k = {k}, got {budget!r}",
        )
    return Choice(chosen, whole, frontier, len(plans))


def choose_plan(frontier: Sequence[Plan[PlanT]], *, max_tokens: float) -> Plan[PlanT] | None:
    """Return the best plan of a frontier that costs at most so much; None if there is none."""
    # Tokens are means of floats: what equals the budget is within it.
    cheap = [plan for plan in frontier if plan.tokens <= max_tokens * (1 + 1e-9)]
    return cheap[-1] if cheap else None


def _average(whats: Sequence[PlanT], outcomes: Sequence[Outcome]) -> list[Plan[PlanT]]:
    return [
        Plan(what, float(each.rewards.mean()), float(each.tokens.mean()))
        for what, each in zip(whats, outcomes, strict=True)
    ]


def _find_frontier(plans: Sequence[Plan[PlanT]]) -> list[Plan[PlanT]]:
    """Return plans, cheapest first, each better than all that are cheaper; the first of equals."""
    frontier: list[Plan[PlanT]] = []
    for plan in sorted(plans, key=lambda plan: (plan.tokens, -plan.reward)):
        if not frontier or plan.reward > frontier[-1].reward:
            frontier.append(plan)
    return frontier


def measure_schedule(
    choice: Choice, chosen_on: ScoredSamples, unseen: ScoredSamples, *, k: int, beta: float
) -> Json:
    """Measure a choice and its rivals on prompts that had no part in it.

    Args:
        choice: Made on ``chosen_on``.
        chosen_on: The prompts that it was made on.
        unseen: At least 2 other prompts, with at least k samples each.
        k: As in ``simulate``, as is ``beta``.
        beta: In units of the final score, 0 <= beta.

    Returns:
        In JSON types, on the unseen prompts unless it says ``choice``: ``base`` (one sample),
        ``ceiling`` (best of k by reward), ``best_of_k`` for every k that there are samples for,
        ``auc`` (how well each head, and the whole, tells better samples from worse),
        ``frontier`` and ``chosen`` of the schedules, ``adaptive`` (its own frontier) and
        ``adaptive_rival``: the best of it for the tokens of the chosen schedule, or None.

    Raises:
        EvaluationError: An argument is not as said above; it is named.
    """
    rewards, groups = unseen.rewards, unseen.groups
    bootstrap = Bootstrap(int(groups[-1]) + 1)
    ceiling = expected_rewards(rewards, rewards, groups, k=k, beta=0)
    plans = [plan.what for plan in choice.frontier]
    chosen, whole, *found = simulate(unseen, [choice.chosen.what, (), *plans], k=k, beta=beta)
    return {
        "k": k,
        "beta": float(beta),
        "num_prompts": {"choice": int(chosen_on.groups[-1]) + 1, "unseen": int(groups[-1]) + 1},
        "base": bootstrap.mean(expected_rewards(rewards, rewards, groups, k=1, beta=0)).to_json(
            "reward"
        ),
        "ceiling": bootstrap.mean(ceiling).to_json("reward"),
        "best_of_k": _measure_best_of_k(unseen, bootstrap, beta),
        "auc": _measure_ranking(unseen, bootstrap),
        "frontier": [
            {"schedule": format_schedule(plan.what), **_compare(plan, each)}
            for plan, each in zip(choice.frontier, found, strict=True)
        ],
        "chosen": {
            "schedule": format_schedule(choice.chosen.what),
            "num_tried": choice.num_tried,
            "choice": {
                "reward": choice.chosen.reward,
                "tokens": choice.chosen.tokens,
                "best_of_k": choice.whole.reward,
            },
            "unseen": _compare_with_whole(chosen, whole, bootstrap),
        },
        **_measure_adaptive(choice, chosen, bootstrap, chosen_on, unseen, k=k, beta=beta),
    }


def judge_schedule(samples: ScoredSamples, schedule: Schedule, *, k: int, beta: float) -> Json:
    """Measure a schedule that was chosen elsewhere; see ``simulate`` for arguments and errors.

    Returns:
        In JSON types: ``schedule``, ``reward``, ``low``, ``high``, ``tokens`` (a prompt),
        ``tokens_share`` (of k whole candidates') and ``minus_best_of_k`` (those at the same beta).
    """
    outcome, whole = simulate(samples, [schedule, ()], k=k, beta=beta)
    bootstrap = Bootstrap(len(outcome.rewards))
    return {
        "schedule": format_schedule(schedule),
        **_compare_with_whole(outcome, whole, bootstrap),
    }


def _compare_with_whole(outcome: Outcome, whole: Outcome, bootstrap: Bootstrap) -> Json:
    return {
        **bootstrap.mean(outcome.rewards).to_json("reward"),
        "tokens": float(outcome.tokens.mean()),
        "tokens_share": float(outcome.tokens.mean() / whole.tokens.mean()),
        "minus_best_of_k": bootstrap.mean(outcome.rewards - whole.rewards).to_json("difference"),
    }


def _compare(plan: Plan[PlanT], outcome: Outcome) -> Json:
    """Return reward and tokens where the choice was made, and likewise under ``unseen``."""
    unseen = {"reward": float(outcome.rewards.mean()), "tokens": float(outcome.tokens.mean())}
    return {"reward": plan.reward, "tokens": plan.tokens, "unseen": unseen}


def _measure_ranking(samples: ScoredSamples, bootstrap: Bootstrap) -> list[Json]:
    """Return a row for each head, and last for the whole; none where no prompt's rewards differ."""
    rows = []
    for tokens, scores in [*samples.heads.items(), (None, samples.final)]:
        values = rank_within_prompts(scores, samples.rewards, samples.groups)
        num_prompts = int(np.isfinite(values).sum())
        if num_prompts:
            row = bootstrap.mean(values).to_json("mean")
            rows.append({"tokens": tokens, "num_prompts": num_prompts, **row})
    return rows


def _measure_best_of_k(samples: ScoredSamples, bootstrap: Bootstrap, beta: float) -> list[Json]:
    groups = samples.groups
    lengths = float((np.bincount(groups, samples.num_tokens) / np.bincount(groups)).mean())
    rows = []
    for k in range(1, int(np.bincount(groups).min()) + 1):
        rewards = expect(samples.final, samples.rewards, groups, k=k, beta=beta).rewards
        rows.append({"k": k, **bootstrap.mean(rewards).to_json("reward"), "tokens": k * lengths})
    return rows


def _measure_adaptive(
    choice: Choice,
    chosen: Outcome,
    bootstrap: Bootstrap,
    chosen_on: ScoredSamples,
    unseen: ScoredSamples,
    *,
    k: int,
    beta: float,
) -> Json:
    """Choose adaptive plans as schedules are chosen, and measure them on the unseen prompts."""
    plans: list[tuple[int, float]] = []
    outcomes: dict[tuple[int, float], Outcome] = {}
    before: list[Outcome] = []
    for num_first in (each for each in _NUM_FIRST if each < k):
        spreads = measure_spreads(chosen_on, num_first=num_first)
        thresholds = np.unique(np.quantile(spreads, _QUANTILES)).tolist()
        new = [(num_first, threshold) for threshold in thresholds]
        plans += new
        before += simulate_adaptive(chosen_on, thresholds, num_first=num_first, k=k, beta=beta)
        after = simulate_adaptive(unseen, thresholds, num_first=num_first, k=k, beta=beta)
        outcomes |= dict(zip(new, after, strict=True))
    frontier = _find_frontier(_average(plans, before))
    rival = choose_plan(frontier, max_tokens=choice.chosen.tokens)

    def describe(plan: Plan[tuple[int, float]]) -> Json:
        num_first, threshold = plan.what
        row = {"num_first": num_first, "threshold": threshold}
        return {**row, **_compare(plan, outcomes[plan.what])}

    return {
        "adaptive": [describe(plan) for plan in frontier],
        "adaptive_rival": rival
        and {
            **describe(rival),
            "chosen_minus_this": bootstrap.mean(
                chosen.rewards - outcomes[rival.what].rewards
            ).to_json("difference"),
        },
    }
