"""The command lines of the commands that need no engine."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qprobe.data.dataset import Reading
from qprobe.data.split import DEFAULT_TEST_FRACTION
from qprobe.errors import DatasetError
from qprobe.probe.network import OBJECTIVES, Layer
from qprobe_server.commands import evaluate, schedule, sweep, train

if TYPE_CHECKING:  # the class is argparse's own secret
    from argparse import _SubParsersAction

__all__ = ["parse"]

_SWEPT_OBJECTIVES = ("ce", "pg")
_DEFAULT_BUDGET = 0.4


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command, which is run by ``args.run(args)``; exits on a usage error."""
    main = argparse.ArgumentParser(prog="qprobe", description="Reranked generation with Q-probes.")
    main.add_argument("--version", action="version", version=version("qprobe"))
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # These two have vLLM's flags and their own parser; here they are named only.
    commands.add_parser("serve", help="serve a model with probes", add_help=False)
    commands.add_parser("collect", help="sample prompts into a dataset", add_help=False)

    swept = commands.add_parser("sweep", help="compare layers, poolings and objectives")
    swept.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    swept.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    swept.add_argument(
        "--readings",
        type=_readings,
        metavar="15/mean/48,final/last",
        help="LAYER/last, LAYER/mean or LAYER/mean/WINDOW; default: all that the dataset has",
    )
    swept.add_argument(
        "--objectives",
        type=_names,
        default=_SWEPT_OBJECTIVES,
        metavar="ce,pg",
        help="of ce, mse, pg, ppo and bt (or dpo, which is the same here); default ce,pg",
    )
    _add_training_flags(swept)
    swept.set_defaults(run=sweep.run)

    trained = commands.add_parser("train", help="train a probe")
    trained.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    trained.add_argument("-o", "--output", type=Path, required=True, help="the probe's file")
    trained.add_argument(
        "--layer", type=_layer, required=True, help="as in the dataset: a number or 'final'"
    )
    trained.add_argument("--pooling", choices=["mean", "last"], default="mean")
    trained.add_argument("--window", type=_count, help="mean of the first so many tokens only")
    trained.add_argument("--objective", choices=OBJECTIVES, default="ce")
    trained.add_argument(
        "--checkpoints",
        type=_counts,
        default=(),
        metavar="16,32,64",
        help="also heads for the first so many tokens, which early rejection needs",
    )
    _add_training_flags(trained)
    trained.set_defaults(run=train.run)

    _add_eval(commands)
    _add_schedule(commands)
    return main.parse_args(list(argv))


def _add_eval(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("eval", help="measure a probe on prompts it has not seen")
    parser.add_argument("probe", type=Path, metavar="PROBE", help="its file")
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the report's folder")
    parser.add_argument("--k", type=int, help="default: what the probe recommends")
    parser.add_argument("--beta", type=float, help="likewise")
    parser.add_argument(
        "--no-learning-curve", action="store_true", help="skip training on fewer prompts"
    )
    parser.set_defaults(run=evaluate.run)


def _add_schedule(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("schedule", help="choose when a probe drops candidates early")
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("probe", type=Path, metavar="PROBE", help="its file, with checkpoints")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="file of the same probe with the schedule, k and beta",
    )
    parser.add_argument("--report", type=Path, required=True, help="the report's folder")
    parser.add_argument("--k", type=int, help="default: what the probe recommends")
    parser.add_argument("--beta", type=float, help="likewise")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--budget",
        type=float,
        default=_DEFAULT_BUDGET,
        help="take the best reward within this share of k whole candidates' tokens; default "
        f"{_DEFAULT_BUDGET}",
    )
    goal.add_argument("--reward", type=float, help="take the cheapest that reaches this instead")
    parser.set_defaults(run=schedule.run)


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--k",
        type=int,
        help="candidates per prompt; default: 16, or the fewest samples of a prompt",
    )
    parser.add_argument("--beta", type=float, default=0.1, help="of the choice; default 0.1")
    parser.add_argument(
        "--hidden", type=_counts, default=(), metavar="64,32", help="an MLP; default: linear"
    )
    parser.add_argument(
        "--weight-decays", type=_numbers, default=(), metavar="1,10", help="to choose from"
    )
    parser.add_argument("--folds", type=int, default=5, help="of cross-validation; default 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--licence", help="SPDX expression for the probe's weights")
    parser.add_argument(
        "--test-fraction",
        type=float,
        help="of the prompts, set aside for the test at random; default: the rows' field 'split' "
        f"says train or test; if they have none, {DEFAULT_TEST_FRACTION}",
    )


def _readings(text: str) -> list[Reading]:
    try:
        return [Reading.parse(each) for each in text.split(",")]
    except DatasetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _layer(text: str) -> Layer:
    return "final" if text == "final" else _count(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(each) for each in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))
