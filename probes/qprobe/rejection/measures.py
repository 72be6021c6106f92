"""What a schedule and its rivals come to: what ``schedule.json`` holds, and a line of ``eval``.

Two sets of prompts enter, and neither may have trained the scores that it comes with: one that the
choice was made on, and one that nothing was chosen on, for what to believe of the choice.
"""

from typing import Any

import numpy as np

from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expect, expected_rewards
from qprobe.evaluation.metrics import rank_within_prompts
from qprobe.probe.schedule import Schedule, format_schedule
from qprobe.rejection.choice import Choice, Plan
from qprobe.rejection.simulation import Outcome, ScoredSamples, simulate

__all__ = ["judge_schedule", "measure_schedule"]

Json = dict[str, Any]


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
        ``frontier`` and ``chosen`` of the schedules, and counts (``num_questions``: of the unseen
        prompts, those that ask the same as one).

    Raises:
        EvaluationError: An argument is not as said above; it is named.
    """
    rewards, groups = unseen.rewards, unseen.groups
    bootstrap = Bootstrap(int(groups[-1]) + 1, unseen.questions)
    ceiling = expected_rewards(rewards, rewards, groups, k=k, beta=0)
    plans = [plan.schedule for plan in choice.frontier]
    chosen, whole, *found = simulate(unseen, [choice.chosen.schedule, (), *plans], k=k, beta=beta)
    return {
        "k": k,
        "beta": float(beta),
        "num_prompts": {"choice": int(chosen_on.groups[-1]) + 1, "unseen": int(groups[-1]) + 1},
        "num_questions": bootstrap.num_questions,
        "base": bootstrap.mean(expected_rewards(rewards, rewards, groups, k=1, beta=0)).to_json(
            "reward"
        ),
        "ceiling": bootstrap.mean(ceiling).to_json("reward"),
        "best_of_k": _measure_best_of_k(unseen, bootstrap, beta),
        "auc": _measure_ranking(unseen, bootstrap),
        "frontier": [
            {"schedule": format_schedule(plan.schedule), **_compare(plan, each)}
            for plan, each in zip(choice.frontier, found, strict=True)
        ],
        "chosen": {
            "schedule": format_schedule(choice.chosen.schedule),
            "num_tried": choice.num_tried,
            "choice": {
                "reward": choice.chosen.reward,
                "tokens": choice.chosen.tokens,
                "best_of_k": choice.whole.reward,
            },
            "unseen": _compare_with_whole(chosen, whole, bootstrap),
        },
    }


def judge_schedule(samples: ScoredSamples, schedule: Schedule, *, k: int, beta: float) -> Json:
    """Measure a schedule that was chosen elsewhere; see ``simulate`` for arguments and errors.

    Returns:
        In JSON types: ``schedule``, ``reward``, ``low``, ``high``, ``tokens`` (a prompt),
        ``tokens_share`` (of k whole candidates') and ``minus_best_of_k`` (those at the same beta).
    """
    outcome, whole = simulate(samples, [schedule, ()], k=k, beta=beta)
    bootstrap = Bootstrap(len(outcome.rewards), samples.questions)
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


def _compare(plan: Plan, outcome: Outcome) -> Json:
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
