"""Prints every table from the folders of a study, and draws its plots.

    python probes/recipes/mbpp/tables.py build/coder > build/coder/tables.md

The folders have fixed names; README.md beside this file lists them. Tables of folders that are not
there are left out, and the end says which.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from on_choices import Votes, tell_humaneval, tell_mbpp
from on_kl import tell_kl
from on_the_rest import tell_api, tell_cost, tell_preferences
from on_tuning import tell_limited, tell_others, tell_reward_model
from prompts import NUM_TEST
from study import Study

from qprobe.data.dataset import Reading
from qprobe.errors import QProbeError
from qprobe.evaluation.votes import VISIBLE_TESTS, Vote

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Print the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path, metavar="FOLDER", help="of the datasets and adapters")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument(
        "--num-test", type=int, default=NUM_TEST, help="the last, if rows have no split"
    )
    parser.add_argument(
        "--reading",
        action="append",
        type=Reading.parse,
        default=[],
        metavar="12/mean",
        help="of several one is chosen by cross-validation; default: mean and last of every layer",
    )
    parser.add_argument("--vote", action="append", default=[], help="as in qprobe eval")
    parser.add_argument("--vote-tests", default=VISIBLE_TESTS, help="likewise")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="default: FOLDER/figures")
    args = parser.parse_args(argv)
    figures = args.figures or args.study / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    try:
        votes = Votes(
            [Vote.parse(each, tests=args.vote_tests) for each in args.vote], args.study / "mbpp"
        )
        study = Study(args.study, k=args.k, num_test=args.num_test, readings=args.reading)
        _tell(study, votes, figures)
    except QProbeError as error:
        sys.exit(f"tables: {error}")


def _tell(study: Study, votes: Votes, figures: Path) -> None:
    tables: dict[str, Callable[[], str | None]] = {
        "MBPP": lambda: tell_mbpp(study, votes, figures),
        "HumanEval": lambda: tell_humaneval(study),
        "Other ways: MBPP": lambda: tell_others(study, "mbpp"),
        "Other ways: HumanEval": lambda: tell_others(study, "humaneval"),
        "Reward model: MBPP": lambda: tell_reward_model(study, "mbpp"),
        "Reward model: HumanEval": lambda: tell_reward_model(study, "humaneval"),
        "Few training problems": lambda: tell_limited(study, figures),
        "Distance from the model": lambda: tell_kl(study, figures),
        "Preferences": lambda: tell_preferences(study),
        "Read by another: MBPP": lambda: tell_api(study, "mbpp"),
        "Read by another: HumanEval": lambda: tell_api(study, "humaneval"),
        "Cost": lambda: tell_cost(study),
    }
    for title, tell in tables.items():
        told = tell()
        if told is not None:
            sys.stdout.write(f"## {title}\n\n{told}\n\n")
            sys.stdout.flush()
    for name, reason in study.missing.items():
        sys.stdout.write(f"Left out: {name}: {reason}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
