"""The commands that work on datasets, and their flags: no engine runs for them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qprobe.data.split import DEFAULT_TEST_FRACTION
from qprobe.probe.values import NUMBERS, OBJECTIVES
from qprobe_server.commands import values
from qprobe_server.commands.collect_flags import add_reward_flags
from qprobe_server.commands.datasets import add_dataset_flags
from qprobe_server.commands.parser import Parser

if TYPE_CHECKING:  # the class is argparse's own secret
    from argparse import _SubParsersAction

__all__ = ["add_dataset_commands"]

_SWEPT_OBJECTIVES = ("ce", "bt", "pg")
_DEFAULT_BUDGET = 0.4


def add_dataset_commands(commands: "_SubParsersAction[Parser]") -> None:
    """Add them."""
    _add_reward(commands)
    _add_sweep(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_schedule(commands)
    _add_export(commands)


def _add_reward(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("reward", help="give the samples of a dataset another reward")
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset, which is added to")
    parser.add_argument(
        "--name",
        help="that --reward-name of the other commands then takes; default: the reward's, such as "
        "tests, or the function's",
    )
    add_reward_flags(parser.add_argument_group("the reward"), required=True)


def _add_sweep(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("sweep", help="compare layers, poolings and objectives")
    _add_data(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--readings",
        type=values.readings,
        metavar="15/mean/48,final/last",
        help="LAYER/last, LAYER/mean, LAYER/mean/WINDOW or LAYER/max/WINDOW; default: all but the "
        "last that the dataset has",
    )
    parser.add_argument(
        "--objectives",
        type=values.names,
        default=_SWEPT_OBJECTIVES,
        metavar="ce,bt,pg",
        help="of ce, mse, pg, ppo and bt (or dpo, which is the same here); default ce,bt,pg",
    )
    _add_gate(parser)
    _add_no_texts(parser)
    _add_training_flags(parser)


def _add_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="15/8,16,32",
        help="segments of the answer, which end after so many tokens, by a gate; of a LAYER alone "
        "all its tokens (collect --token-states); may be given several times",
    )


def _add_train(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("train", help="train a probe")
    _add_data(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the probe's file")
    parser.add_argument("--layer", type=values.layer, help="as in the dataset: a number or 'final'")
    parser.add_argument("--pooling", choices=["mean", "last"], default="mean")
    parser.add_argument("--window", type=values.count, help="mean of the first so many tokens only")
    parser.add_argument(
        "--reading",
        type=values.reading,
        action="append",
        default=[],
        metavar="15/mean/48",
        help="instead of these three; given several times, the score is their sum; also "
        "LAYER/max/WINDOW (collect --token-states)",
    )
    _add_gate(parser)
    parser.add_argument("--objective", choices=OBJECTIVES, default="ce")
    parser.add_argument(
        "--checkpoints",
        type=values.counts,
        default=(),
        metavar="16,32,64",
        help="also heads for the first so many tokens, which early rejection needs",
    )
    _add_training_flags(parser)


def _add_eval(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("eval", help="measure a probe on prompts it has not seen")
    parser.add_argument("probe", type=Path, metavar="PROBE", help="its file")
    _add_data(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the report's folder")
    parser.add_argument("--k", type=int, help="default: what the probe recommends")
    parser.add_argument("--beta", type=float, help="likewise")
    parser.add_argument(
        "--vote",
        action="append",
        default=[],
        metavar="numeric|regex:PATTERN|json|text|code|tests|passing",
        help="measure votes among samples with equal answers too, as q_probe.vote holds them; code "
        "compares what the calls in the visible tests return, tests the same of what passes these, "
        "passing counts all that pass as one answer; they run the samples' code in a sandbox. May "
        "be given several times",
    )
    parser.add_argument(
        "--vote-tests",
        default="visible_tests",
        metavar="FIELD",
        help="of a row: the tests that its prompt shows, or FIELD[0] the first of them; default: "
        "visible_tests, which the layouts mbpp and mbpp-raw write",
    )
    _add_no_texts(parser)
    parser.add_argument(
        "--no-learning-curve", action="store_true", help="skip training on fewer prompts"
    )


def _add_schedule(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("schedule", help="choose when a probe drops candidates early")
    _add_data(parser)
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


def _add_no_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-texts", action="store_true", help="no prompts and answers in the report's page"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="FOLDER", help="the dataset; of several, all of them"
    )
    add_dataset_flags(parser)


def _add_export(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("export", help="write a dataset as a Parquet table")
    _add_data(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.parquet", help="a row a sample"
    )
    parser.add_argument(
        "--embeddings",
        type=values.readings,
        default=(),
        metavar="15/mean/48,final/last",
        help="also these, as LAYER/last, LAYER/mean or LAYER/mean/WINDOW; default: none",
    )


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--numbers",
        type=values.number_names,
        metavar="all|none|cut,...",
        help=f"what the score reads too, of {', '.join(NUMBERS)}; default: all if the dataset has "
        "log-probabilities, none else or where completions were given or an API has sampled",
    )
    parser.add_argument(
        "--k",
        type=int,
        help="candidates per prompt; default: 16, or the fewest samples of a prompt",
    )
    parser.add_argument("--beta", type=float, default=0.1, help="of the choice; default 0.1")
    parser.add_argument(
        "--per-prompt",
        action="store_true",
        help="ce and mse fit an intercept for each prompt, where prompts differ in difficulty",
    )
    parser.add_argument(
        "--weight-decays", type=values.numbers, default=(), metavar="1,10", help="to choose from"
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
