"""What the commands of training print: results to stdout, warnings to stderr."""

import sys
from typing import Any

__all__ = ["print_headline", "warn", "warn_of_gain"]

Json = dict[str, Any]


def warn(text: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"warning: {text}\n")


def warn_of_gain(metrics: Json) -> None:
    """Warn of a probe whose gain over the base model is not shown by the prompts measured on."""
    from qprobe.reports.evaluation import judge_gain

    gain = metrics["gain"]
    if gain["low"] <= 0:
        warn(
            f"the gain over one sample of the base model is {gain['difference']:+.4f}  "
            f"({gain['low']:+.4f} to {gain['high']:+.4f}). {judge_gain(gain)}"
        )


def print_headline(metrics: Json, *, about: str) -> None:
    """Print what ``measure`` returned, and the schedule's figures if they are there.

    Args:
        metrics: What a probe is worth.
        about: Which probe or which prompts.
    """
    write = sys.stdout.write
    write(f"{about}, k={metrics['k']}, beta={metrics['beta']:g}\n")
    for name in ("base", "policy", "ceiling"):
        row = metrics[name]
        write(f"{name:9}{row['reward']:.4f}  ({row['low']:.4f} to {row['high']:.4f})\n")
    for vote in metrics.get("votes", []):
        for way in ("majority", "weighted"):
            row = vote[way]
            write(f"{way} vote by {vote['by']}: {row['reward']:.4f}  ({row['low']:.4f} to ")
            write(f"{row['high']:.4f})\n")
    closed = metrics["gap_closed"]
    if closed:
        low, high = closed["low"], closed["high"]
        write(f"of the gap closed: {closed['share']:.0%}  ({low:.0%} to {high:.0%})\n")
    row = metrics.get("schedule")
    if row:
        write(f"schedule {row['schedule']}: {row['reward']:.4f}  ({row['low']:.4f} to ")
        write(f"{row['high']:.4f}) for {row['tokens_share']:.0%} of the tokens\n")
