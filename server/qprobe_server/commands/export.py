"""``qprobe export``: a dataset, or several, as one Parquet file. Needs no engine."""

import argparse
import sys

from qprobe_server.commands.datasets import check_datasets, load_datasets
from qprobe_server.commands.paths import check_output_file
from qprobe_server.errors import StartupError

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Write the table.

    Raises:
        QProbeError: The dataset is not valid, or lacks an embedding.
        StartupError: A path is not what it must be.
    """
    check_output_file("--output", args.output)
    if args.output.suffix != ".parquet":
        raise StartupError(f"--output must be a file that ends in .parquet, got {args.output}")
    check_datasets(args.data)
    # Here, since torch takes seconds, which a wrong path should not.
    from qprobe.data.export import export_table

    dataset = load_datasets(args)
    export_table(dataset, args.output, args.embeddings)
    sys.stdout.write(f"{len(dataset.samples)} samples\n{args.output}\n")
