"""Which schedule a probe should recommend: the grid of schedules, and the choice among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from qprobe.errors import EvaluationError
from qprobe.probe.schedule import Schedule, Step, format_schedule
from qprobe.rejection.simulation import ScoredSamples, simulate

__all__ = ["Choice", "Plan", "choose_schedule", "list_schedules"]

# With 7 checkpoints and k = 16 that makes 3,760 schedules.
_MAX_STEPS = 3
_KEEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class Plan:
    """A schedule, with its mean reward and tokens a prompt where the choice is made."""

    schedule: Schedule
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

    chosen: Plan
    whole: Plan
    frontier: list[Plan]
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
    plans = [
        Plan(schedule, float(outcome.rewards.mean()), float(outcome.tokens.mean()))
        for schedule, outcome in zip(
            schedules, simulate(samples, schedules, k=k, beta=beta), strict=True
        )
    ]
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
    # Tokens are means of floats: what equals the budget is within it.
    cheap = [plan for plan in frontier if plan.tokens <= budget * whole.tokens * (1 + 1e-9)]
    if not cheap:
        cheapest = math.ceil(frontier[0].tokens / whole.tokens * 1e4) / 1e4  # likewise
        raise EvaluationError(
            "budget",
            f"must be at least {cheapest}, the share of the tokens that the cheapest schedule "
            f"{format_schedule(frontier[0].schedule)!r} takes with k = {k}, got {budget!r}",
        )
    return Choice(cheap[-1], whole, frontier, len(plans))


def _find_frontier(plans: Sequence[Plan]) -> list[Plan]:
    """Return plans, cheapest first, each better than all that are cheaper; the first of equals."""
    frontier: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.tokens, -plan.reward)):
        if not frontier or plan.reward > frontier[-1].reward:
            frontier.append(plan)
    return frontier
