"""``qprobe sweep``: which reading and objective suit a dataset. Needs no engine."""

import argparse
import sys
from pathlib import Path

from qprobe import save_probe
from qprobe.data.dataset import Dataset
from qprobe.reports.evaluation import write_report
from qprobe.training.recipe import make_probe
from qprobe.training.sweep import Cell, format_table, run_sweep, write_sweep
from qprobe_server.commands.evaluate import print_headline
from qprobe_server.commands.train import read_settings
from qprobe_server.errors import StartupError

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Sweep, and write the winner, its report and the table.

    Raises:
        QProbeError: The dataset or a setting is not valid.
    """
    _check_folder(args.output)
    dataset = Dataset.load(args.data)

    def show(cell: Cell) -> None:
        reward = cell.refusal if cell.reward is None else f"{cell.reward:.4f}"
        sys.stderr.write(f"{cell.reading} {cell.objective}: {reward}\n")

    result = run_sweep(
        dataset,
        readings=args.readings or dataset.readings,
        objectives=args.objectives,
        settings=read_settings(args, args.objectives[0]),
        test_fraction=args.test_fraction,
        seed=args.seed,
        progress=show,
    )
    write_sweep(result, args.output)
    probe = make_probe(
        dataset,
        result.winner.reading,
        result.settings,
        result.probe,
        test=result.test,
        licence=args.licence,
    )
    save_probe(probe, args.output / "probe.safetensors")
    title = f"Sweep winner: {result.winner.reading}, {result.winner.objective}"
    cells = [cell.to_json() for cell in result.cells]
    write_report({**result.metrics, "title": title, "sweep": cells}, args.output)
    sys.stdout.write(format_table(result))
    print_headline(result.metrics)
    sys.stdout.write(f"{args.output / 'report.html'}\n{args.output / 'probe.safetensors'}\n")


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StartupError(f"--output {str(path)!r} must be a folder")
