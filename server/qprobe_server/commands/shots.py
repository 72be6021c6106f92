"""The shots of a collection, as its command line says."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from qprobe.data.prompts import PromptRow, read_prompts
from qprobe.data.shots import add_shots, choose_shots
from qprobe.errors import PromptFileError, RowError
from qprobe_server.commands import values
from qprobe_server.commands.prompt_source import source
from qprobe_server.errors import StartupError

__all__ = ["SHOTS_FLAGS", "add_shots_flags", "describe_shots", "put_shots"]

# As many as the paper has.
_NUM_SHOTS = 5

# By the manifest's fields of ``shots``.
SHOTS_FLAGS = {
    "name": "--shots",
    "num_shots": "--num-shots",
    "lines": "--shots, --num-shots or --seed",
    "sha256": "--shots",
}


def add_shots_flags(group: "argparse._ArgumentGroup") -> None:
    """Add the flags that put shots before every prompt."""
    group.add_argument(
        "--shots",
        type=source,
        metavar="FILE",
        help="Put good answers before every prompt: rows of a prompt and a completion, as `qprobe "
        "export` writes them.",
    )
    group.add_argument(
        "--num-shots",
        type=values.count,
        metavar="NUMBER",
        help=f"How many of FILE, those of the highest reward first. Default: {_NUM_SHOTS}.",
    )


def put_shots(args: argparse.Namespace, rows: list[PromptRow]) -> list[PromptRow]:
    """Return the rows with the shots that the command line asks for before their prompts.

    All get the same in the same order, so that what they have in common is computed once.

    Raises:
        PromptFileError: The shots cannot be read, or do not go with a prompt.
        StartupError: There are not as many as wanted.
    """
    if args.shots is None:
        if args.num_shots is not None:
            raise StartupError("--num-shots goes with --shots")
        return rows
    wanted = args.num_shots or _NUM_SHOTS
    given = read_prompts(args.shots, needs_completions=True)
    shots = choose_shots(given, rows, num_shots=wanted, seed=args.seed or 0)
    if len(shots) < wanted:
        raise StartupError(
            f"--num-shots is {wanted}, but {str(args.shots)!r} has {len(shots)} different prompts "
            "that are not collected themselves"
        )
    made = []
    for row in rows:
        try:
            made.append(add_shots(row, shots))
        except RowError as error:
            raise PromptFileError(args.prompts, row.line, error.field, error.message) from error
    lines = ", ".join(str(each.line) for each in shots)
    sys.stderr.write(f"qprobe: shots are the rows of these lines of {str(args.shots)!r}: {lines}\n")
    return made


def describe_shots(args: argparse.Namespace, rows: Sequence[PromptRow]) -> dict[str, Any] | None:
    """Return what the manifest says of the shots: which they are, and the hash of their content."""
    shots = rows[0].shots
    if not shots:
        return None
    content = json.dumps([astuple(each)[:2] for each in shots])
    return {
        "name": args.shots.name if isinstance(args.shots, Path) else args.shots,
        "num_shots": len(shots),
        "lines": [each.line for each in shots],
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }
