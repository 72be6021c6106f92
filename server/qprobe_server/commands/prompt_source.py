"""Where the prompts of a collection come from, as its command line says."""

import argparse
import hashlib
import json
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qprobe.data.columns import Columns
from qprobe.data.prompts import PromptRow, read_prompts
from qprobe.data.source import HUB, Source
from qprobe.rewards import Reward
from qprobe_server.commands import values

__all__ = ["SOURCE_FLAGS", "add_source_flags", "describe_source", "read_rows", "source"]

Json = dict[str, Any]

# By the manifest's fields of ``prompts``.
SOURCE_FLAGS = {
    "name": "PROMPTS",
    "subset": "--subset",
    "columns": "--columns",
    "split_column": "--split-column",
    "splits": "--splits",
    "test_splits": "--test-splits",
    "sha256": "PROMPTS",
    "layout": "--layout",
}


# Files that make a folder a data set for ``datasets``.
_DATA_SET = (
    *("*.parquet", "*/*.parquet", "*.jsonl", "data/*.jsonl", "*.csv", "data/*.csv"),
    *("state.json", "dataset_dict.json"),
)


def source(text: str) -> Source:
    """Read the path of a file or of a data set's folder, or the address of a data set."""
    if text.startswith(HUB):
        return text
    folder = Path(text)
    if folder.is_dir() and any(next(folder.glob(each), None) for each in _DATA_SET):
        return folder
    return values.file(text)


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the source of the prompts is laid out."""
    group = parser.add_argument_group("the columns and splits of PROMPTS")
    group.add_argument(
        "--columns",
        type=_columns,
        metavar="prompt=question,answer=final",
        help="Our names of fields, and the columns that they are in.",
    )
    group.add_argument(
        "--split-column", metavar="NAME", help="Column of a row's split. Default: split."
    )
    group.add_argument("--splits", type=values.names, metavar="a,b", help="Read these splits only.")
    group.add_argument(
        "--test-splits",
        type=values.names,
        metavar="validation,test",
        help="Splits that judge the probe, all others being for training. Default: the column "
        "itself says train or test.",
    )
    group.add_argument("--subset", metavar="NAME", help="Of a data set that has several.")


def read_rows(args: argparse.Namespace, reward: Reward | None) -> list[PromptRow]:
    """Return the rows that the command line asks for, all of the source having been checked.

    Raises:
        PromptFileError: The source cannot be read, or a row is not valid.
    """
    columns = Columns(
        names=args.columns or {},
        split=args.split_column or "split",
        splits=args.splits or (),
        test_splits=args.test_splits or (),
    )
    return read_prompts(
        args.prompts,
        layout=args.layout,
        columns=columns,
        subset=args.subset,
        needs_completions=args.completions,
        needs_rewards=args.completions and reward is None,
        check=reward.check if reward else None,
    )[: args.limit]


def describe_source(args: argparse.Namespace, rows: Sequence[PromptRow]) -> Json:
    """Return what the manifest says of the prompts; of a data set it hashes the rows."""
    place = args.prompts
    is_file = isinstance(place, Path) and place.is_file()
    if is_file:
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        # As it was made of several files once.
        digest = hashlib.sha256(digest.digest())
    else:
        digest = hashlib.sha256(json.dumps([row.fields for row in rows]).encode())
    return {
        "name": place.name if isinstance(place, Path) else place,
        "sha256": digest.hexdigest(),
        "layout": args.layout,
        **{name: getattr(args, name) for name in ("columns", "split_column", "subset")},
        **{name: getattr(args, name) for name in ("splits", "test_splits")},
    }


def _columns(text: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        if not (ours and equals and theirs) or ours in names:
            raise ArgumentTypeError(f"must be pairs such as prompt=question, got {text!r}")
        names[ours] = theirs
    return names
