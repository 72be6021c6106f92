"""What the figures of a probe allow to say of it, in sentences. Needs no matplotlib."""

from typing import Any

from qprobe.evaluation.bootstrap import MIN_PROMPTS

__all__ = ["BASELINES", "has_enough", "judge_free", "judge_gain"]

Json = dict[str, Any]

# The ways of choosing that need no probe, as ``measure`` names them.
BASELINES = {
    "greedy": "greedy answer",
    "best_by_mean_logprob": "best mean log-probability",
    "best_by_logprob": "best total log-probability",
    "numbers": "the numbers alone, weighed",
    "majority_vote": "majority vote",
}


def has_enough(metrics: Json) -> bool:
    """Whether there are enough prompts for a verdict."""
    return int(metrics["num_questions"]) >= MIN_PROMPTS


def judge_gain(metrics: Json) -> str:
    """Return what the interval of a probe's gain over the base model says, as a sentence."""
    if not has_enough(metrics):
        return (
            f"These are {metrics['num_questions']} prompts, too few for a verdict: "
            f"{MIN_PROMPTS} are needed."
        )
    gain = metrics["gain"]
    if gain["low"] > 0:
        return "The interval lies above 0: on prompts like these the probe helps."
    if gain["high"] < 0:
        return "The interval lies below 0: on prompts like these the probe does harm."
    return "The interval holds 0: these prompts do not show whether the probe helps."


def judge_free(metrics: Json) -> list[str]:
    """Return which of the ways that need no probe are better, or may be, a sentence each."""
    if not has_enough(metrics):
        return []
    better, open_ = [], []
    for name, row in metrics["baselines"].items():
        minus = row["policy_minus_baseline"]
        if minus["high"] < 0:
            better.append(BASELINES[name])
        elif minus["low"] <= 0:
            open_.append(BASELINES[name])
    found = []
    if better:
        found.append(f"What needs no probe is better: {', '.join(better)}.")
    if open_:
        found.append(f"The probe is not shown to beat what needs no probe: {', '.join(open_)}.")
    return found
