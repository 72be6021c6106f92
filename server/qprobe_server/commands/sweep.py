"""``qprobe sweep``: which terms and objective suit a dataset. Needs no engine."""

import argparse
import sys
from typing import TYPE_CHECKING

from qprobe_server.commands.datasets import check_datasets, load_datasets
from qprobe_server.commands.paths import check_output_folder
from qprobe_server.commands.printing import print_headline, suggest_vote, warn, warn_of_gain
from qprobe_server.commands.train import read_settings

if TYPE_CHECKING:  # they import torch, which takes seconds
    from qprobe import Dataset
    from qprobe.training.sweep import SweepResult

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Sweep, and write the winner, its report and the table.

    Raises:
        QProbeError: The dataset or a setting is not valid.
        StartupError: A path is not what it must be.
    """
    check_output_folder("--output", args.output)
    check_datasets(args.data)
    # Here, since torch takes seconds, which a wrong path should not.
    from tqdm import tqdm

    from qprobe.training.design import settle_numbers
    from qprobe.training.sweep import count_cells, drop_equal, run_sweep

    dataset = load_datasets(args)
    readings, equal = drop_equal(dataset, args.readings or dataset.readings)
    if equal:
        skipped = ", ".join(map(str, equal))
        sys.stderr.write(f"skipped, as no answer is longer than these windows: {skipped}\n")
    numbers = settle_numbers(dataset, args.numbers)
    count = count_cells(
        readings,
        numbers=bool(numbers),
        objectives=len(args.objectives),
        gates=len(args.gate),
    )
    with tqdm(total=count, unit="probe", disable=None, leave=False) as bar:
        result = run_sweep(
            dataset,
            readings=readings,
            objectives=args.objectives,
            settings=read_settings(args, args.objectives[0]),
            numbers=numbers,
            gates=args.gate,
            k=args.k,
            test_fraction=args.test_fraction,
            seed=args.seed,
            licence=args.licence,
            folder=args.output,
            progress=lambda _: bar.update(),
        )
    _write(args, dataset, result)
    for note in result.probe.info.training["notes"]:
        warn(note)
    warn_of_gain(result.metrics)


def _write(args: argparse.Namespace, dataset: "Dataset", result: "SweepResult") -> None:
    """Write the winner, its report and the table, and print their headline."""
    from qprobe import save_probe
    from qprobe.reports.evaluation import write_report
    from qprobe.reports.examples import pick_examples
    from qprobe.training.sweep import format_table, write_sweep

    probe, report = args.output / "probe.safetensors", args.output / "report.html"
    save_probe(result.probe, probe)
    winner = f"{result.winner.terms}, {result.winner.objective}"
    cells = [cell.to_json() for cell in result.cells]
    write_report(
        {**result.metrics, "title": f"Sweep winner: {winner}", "sweep": cells},
        args.output,
        examples=[] if args.no_texts else pick_examples(result.probe, dataset),
    )
    write_sweep(result, args.output)  # last, as it removes what a stopped sweep goes on from
    sys.stdout.write(f"{format_table(result)}\n")
    print_headline(result.metrics, about=f"{winner}, on {len(result.test)} prompts set aside")
    suggest_vote(dataset.prompts)
    sys.stdout.write(f"{report}\n{probe}\n")
