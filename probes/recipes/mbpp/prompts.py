"""Puts a file of problems in random order, so that any first so many are a random part of it.

The last of MBPP are for the test. They also go to a file of their own, OUT-test.jsonl, for what is
sampled on them alone. HumanEval has none that are trained on.

    python probes/recipes/mbpp/prompts.py sanitized-mbpp.json -o build/mbpp.jsonl
    python probes/recipes/mbpp/prompts.py HumanEval.jsonl.gz -o build/humaneval.jsonl --num-test 0
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qprobe.data.source import read_objects
from qprobe.errors import QProbeError
from qprobe.files import write_file

__all__ = ["NUM_TEST", "main", "order_problems", "write_rows"]

Json = dict[str, Any]
NUM_TEST = 150


def order_problems(problems: Sequence[Json], *, num_test: int, seed: int) -> list[Json]:
    """Return problems in random order, the last ``num_test`` with the split ``test``.

    Args:
        problems: Rows as they are published; a split that they have is forgotten.
        num_test: 0 leaves the field out.
        seed: Of the order.

    Raises:
        ValueError: Nothing would be left to train on.
    """
    if not 0 <= num_test < len(problems):
        raise ValueError(f"--num-test must be from 0 to {len(problems) - 1}, got {num_test}")
    plain = [{name: each[name] for name in each if name != "split"} for each in problems]
    random.Random(seed).shuffle(plain)
    if not num_test:
        return plain
    num_train = len(plain) - num_test
    return [
        {**each, "split": "train" if place < num_train else "test"}
        for place, each in enumerate(plain)
    ]


def main(argv: Sequence[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problems", metavar="FILE", help="JSON, JSON lines, .gz, Parquet or hf://")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jsonl")
    parser.add_argument("--num-test", type=int, default=NUM_TEST, help=f"default: {NUM_TEST}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    source = args.problems if args.problems.startswith("hf://") else Path(args.problems)
    try:
        given = [row for _, row in read_objects(source)]
        rows = order_problems(given, num_test=args.num_test, seed=args.seed)
    except (QProbeError, ValueError) as error:
        sys.exit(f"prompts: {error}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_rows(args.output, rows)
    # Without the field: a dataset of them alone has no other side.
    test = [{**row} for row in rows if row.get("split") == "test"]
    for row in test:
        del row["split"]
    if test:
        write_rows(args.output.with_name(f"{args.output.stem}-test.jsonl"), test)
    sys.stderr.write(f"{len(rows)} problems, {len(test)} of them for the test\n")


def write_rows(path: Path, rows: Iterable[Json]) -> None:
    """Write rows as JSON lines."""
    write_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
