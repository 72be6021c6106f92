"""What the commands of training print: results to stdout, warnings to stderr."""

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["print_headline", "suggest_vote", "warn", "warn_of_gain"]

Json = dict[str, Any]


def warn(text: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"warning: {text}\n")


def warn_of_gain(metrics: Json) -> None:
    """Warn of a probe that the prompts measured on do not show to beat what is free."""
    from qprobe.reports.verdict import has_enough, judge_free, judge_gain

    gain = metrics["gain"]
    if gain["low"] <= 0 or not has_enough(metrics):
        warn(
            f"the gain over one sample of the base model is {gain['difference']:+.4f}  "
            f"({gain['low']:+.4f} to {gain['high']:+.4f}). {judge_gain(metrics)}"
        )
    for text in judge_free(metrics):
        warn(text)


def suggest_vote(rows: Sequence[Json]) -> None:
    """Print that answers can vote by what their code does, if the rows have what that needs."""
    from qprobe.evaluation.votes import VISIBLE_TESTS

    if all(row.get(VISIBLE_TESTS) for row in rows):
        sys.stdout.write(
            f"the rows have {VISIBLE_TESTS}: `qprobe eval ... --vote code` measures a vote of the "
            "answers by what their code does, without a probe and with it\n"
        )


def print_headline(metrics: Json, *, about: str) -> None:
    """Print what ``measure`` returned, and the schedule's figures if they are there.

    Args:
        metrics: What a probe is worth.
        about: Which probe or which prompts.
    """
    from qprobe.reports.verdict import BASELINES

    write = sys.stdout.write
    write(f"{about}, k={metrics['k']}, beta={metrics['beta']:g}\n")
    for name in ("base", "policy", "ceiling"):
        row = metrics[name]
        write(f"{name:9}{row['reward']:.4f}  ({row['low']:.4f} to {row['high']:.4f})\n")
    for name, row in metrics["baselines"].items():
        write(f"without a probe, {BASELINES[name]}: {row['reward']:.4f}  ")
        minus = row["policy_minus_baseline"]
        write(f"(the probe {minus['difference']:+.4f}, {minus['low']:+.4f} to ")
        write(f"{minus['high']:+.4f})\n")
    for vote in metrics.get("votes", []):
        for way in ("majority", "weighted"):
            row = vote[way]
            write(f"{way} vote by {vote['by']}: {row['reward']:.4f}  ({row['low']:.4f} to ")
            write(f"{row['high']:.4f})\n")
    closed = metrics["gap_closed"]
    if closed:
        low, high = closed["low"], closed["high"]
        write(f"of the gap closed: {closed['share']:.0%}  ({low:.0%} to {high:.0%})\n")
    found = metrics.get("confidence")
    if found:
        kept = ", ".join(f"{row['share']:.0%} {row['reward']:.4f}" for row in found["kept"][::4])
        ece = found["ece"]
        write(f"confidence: calibration error {ece['value']:.4f} (a perfect one by chance ")
        write(f"{ece['calibrated']:.4f}, at most {ece['calibrated_most']:.4f}); ")
        write(f"answers kept: {kept}\n")
    row = metrics.get("schedule")
    if row:
        write(f"schedule {row['schedule']}: {row['reward']:.4f}  ({row['low']:.4f} to ")
        write(f"{row['high']:.4f}) for {row['tokens_share']:.0%} of the tokens\n")
