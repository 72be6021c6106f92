"""The datasets that a command of training names: one or several folders, taken as one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qprobe_server.commands import values
from qprobe_server.commands.paths import check_dataset
from qprobe_server.commands.printing import warn

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from qprobe import Dataset

__all__ = ["add_dataset_flags", "check_datasets", "load_datasets"]

_MOST_NAMED = 3


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Add what says which samples count, and by which reward."""
    parser.add_argument(
        "--reward-name",
        metavar="NAME",
        help="of a reward that `qprobe reward` added; default: the one collected",
    )
    parser.add_argument(
        "--min-samples",
        type=values.count,
        default=1,
        metavar="NUMBER",
        help="leave out prompts with fewer samples; default 1",
    )


def check_datasets(folders: Sequence[Path], *, order: str | None = None) -> None:
    """Check that paths can be datasets' folders; see ``check_dataset``."""
    for each in folders:
        check_dataset(each, order=order)


def load_datasets(args: argparse.Namespace) -> "Dataset":
    """Read the folders ``args.data`` as one dataset, and tell what was left out of it.

    Raises:
        DatasetError: One is not valid, or they do not go together.
    """
    # Here, since torch takes seconds, which a wrong path should not.
    from qprobe import Dataset
    from qprobe.data.merging import drop_few, merge_datasets

    loaded = [Dataset.load(each, reward_name=args.reward_name) for each in args.data]
    whole = merge_datasets(loaded, [str(each) for each in args.data])
    kept = drop_few(whole, args.min_samples)
    if len(kept.prompts) < len(whole.prompts):
        few = [
            place
            for place, count in zip(whole.places, whole.num_samples, strict=True)
            if count < args.min_samples
        ]
        more = ", ..." if len(few) > _MOST_NAMED else ""
        warn(
            f"{len(few)} of {len(whole.prompts)} prompts are left out, as they have fewer than "
            f"{args.min_samples} samples with a reward: {', '.join(few[:_MOST_NAMED])}{more}"
        )
    return kept
