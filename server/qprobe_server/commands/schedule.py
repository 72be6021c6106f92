"""``qprobe schedule``: choose when a probe drops candidates, and write the probe that says so.

Needs no engine.
"""

import argparse
import math
import sys
from typing import Any

from qprobe_server.commands.datasets import check_datasets, load_datasets
from qprobe_server.commands.paths import (
    check_output_file,
    check_output_folder,
    check_probe,
)
from qprobe_server.commands.printing import warn
from qprobe_server.errors import StartupError

__all__ = ["run"]

Json = dict[str, Any]
_ORDER = "FOLDER... PROBE"


def run(args: argparse.Namespace) -> None:
    """Choose a schedule, write the report and the probe that recommends it.

    Raises:
        QProbeError: The probe or the dataset is not valid, or they do not go together.
        StartupError: A path or a flag is not what it must be.
    """
    _check_arguments(args)
    # Here, since torch takes seconds, which a wrong path should not.
    from tqdm import tqdm

    from qprobe import load_probe, save_probe
    from qprobe.rejection.recipe import recommend_schedule
    from qprobe.reports.schedule import write_schedule_report

    probe = load_probe(args.probe)
    dataset = load_datasets(args)
    count = 1 + len(probe.info.checkpoints)
    with tqdm(total=count, unit="reading", disable=None, leave=False) as bar:
        made, metrics = recommend_schedule(
            probe,
            dataset,
            k=args.k,
            beta=args.beta,
            budget=args.budget,
            reward=args.reward,
            progress=bar.update,
        )
    title = f"Early rejection with {args.probe.name}"
    write_schedule_report({**metrics, "title": title}, args.report)
    save_probe(made, args.output)
    _print_headline(metrics)
    sys.stdout.write(f"{args.report / 'schedule.html'}\n{args.output}\n")
    for note in metrics["notes"]:
        warn(note)


def _check_arguments(args: argparse.Namespace) -> None:
    check_output_file("--output", args.output)
    check_output_folder("--report", args.report)
    check_datasets(args.data, order=_ORDER)
    check_probe(args.probe, order=_ORDER)
    if not 0 < args.budget <= 1:
        raise StartupError(f"--budget must be above 0 and at most 1, got {args.budget!r}")
    if args.reward is not None and not math.isfinite(args.reward):
        raise StartupError(f"--reward must be a finite number, got {args.reward!r}")
    if args.beta is not None and not 0 <= args.beta < math.inf:
        raise StartupError(f"--beta must be a finite number >= 0, got {args.beta!r}")


def _print_headline(metrics: Json) -> None:
    write = sys.stdout.write
    chosen, k = metrics["chosen"], metrics["k"]
    whole = next(row for row in metrics["best_of_k"] if row["k"] == k)
    counts = metrics["num_prompts"]
    write(
        f"schedule {chosen['schedule'] or '(none)'}, chosen on {counts['choice']} prompts; on "
        f"{counts['unseen']} others, k={k}, beta={metrics['beta']:g}:\n"
    )
    for name, row in ((f"best of {k}", whole), ("schedule", chosen["unseen"])):
        write(
            f"{name:11}{row['reward']:.4f}  ({row['low']:.4f} to {row['high']:.4f})  "
            f"{row['tokens']:.0f} tokens\n"
        )
    minus = chosen["unseen"]["minus_best_of_k"]
    write(
        f"difference {minus['difference']:+.4f}  ({minus['low']:+.4f} to {minus['high']:+.4f})  "
        f"{chosen['unseen']['tokens_share']:.0%} of the tokens\n"
    )
