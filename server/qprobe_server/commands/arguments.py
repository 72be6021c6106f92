"""The command line: one parser for all commands, which imports nothing heavy."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qprobe.data.split import DEFAULT_TEST_FRACTION
from qprobe.probe.values import NUMBERS, OBJECTIVES
from qprobe_server.commands import collect_flags, proxy_flags, serve_flags, values
from qprobe_server.commands.datasets import add_dataset_flags
from qprobe_server.commands.parser import Parser, add_vllm_flags, expand_config, normalize

if TYPE_CHECKING:  # the class is argparse's own secret
    from argparse import _SubParsersAction

__all__ = ["parse"]

_SWEPT_OBJECTIVES = ("ce", "bt", "pg")
_DEFAULT_BUDGET = 0.4
_VLLM_HELP = """Every other flag of vLLM is taken too: --help=all shows them all, --help=vllm their
groups, and --help=ParallelConfig or --help=max-num-seqs some."""
_HELP = "--help="


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exits on a usage error, and where help or the version is asked for.

    Returns:
        ``command`` and its flags. Where an engine runs those of vLLM are as written, None where
        they are not there; ``argv`` is what vLLM's parser is to read, and ``add_flags`` adds
        ours to it.
    """
    main = Parser(prog="qprobe", description="Reranked generation with Q-probes.")
    main.add_argument("--version", action="version", version=version("qprobe"))
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    engine_commands = {
        "serve": _add_serve(commands),
        "proxy": _add_proxy(commands),
        "collect": _add_collect(commands),
    }
    _add_reward(commands)
    _add_sweep(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_schedule(commands)
    _add_export(commands)
    parser = engine_commands.get(argv[0]) if argv else None
    if parser is None:
        return main.parse_args(list(argv))
    for each in argv[1:]:
        if each.startswith(_HELP):
            _show_help(parser, argv[0], each.removeprefix(_HELP))
    rest = expand_config(parser, argv[1:])
    args = main.parse_args([argv[0], *normalize(rest)])
    args.argv = [argv[0], *rest]
    return args


def _show_help(parser: Parser, command: str, topic: str) -> NoReturn:
    if topic == "qprobe":
        parser.print_help()
        parser.exit()
    # Not at the top: vLLM takes seconds, and reads the environment when it is imported.
    from qprobe_server.commands.serve import prepare_environment

    prepare_environment()
    from qprobe_server.vllm_backend import arguments

    add_flags = parser.get_default("add_flags")
    arguments.parse([command, "--help" if topic == "vllm" else _HELP + topic], add_flags)
    raise AssertionError("help exits")


def _add_serve(commands: "_SubParsersAction[Parser]") -> Parser:
    parser = commands.add_parser("serve", help="serve a model with probes", epilog=_VLLM_HELP)
    parser.add_argument(
        "model_tag", nargs="?", metavar="MODEL", help="A hub's ORG/NAME or a folder."
    )
    serve_flags.add_serve_flags(parser)
    add_vllm_flags(parser, "engine", "server", shown=serve_flags.SHOWN)
    parser.set_defaults(add_flags=serve_flags.add_serve_flags)
    return parser


def _add_proxy(commands: "_SubParsersAction[Parser]") -> Parser:
    parser = commands.add_parser(
        "proxy", help="rerank what another server samples, behind its API", epilog=_VLLM_HELP
    )
    shared = {"shutdown_timeout"}
    _add_engine(parser, proxy_flags.add_proxy_flags, shown=proxy_flags.SHOWN, shared=shared)
    return parser


def _add_collect(commands: "_SubParsersAction[Parser]") -> Parser:
    parser = commands.add_parser("collect", help="sample prompts into a dataset", epilog=_VLLM_HELP)
    shared = {"seed"}
    _add_engine(parser, collect_flags.add_collect_flags, shown=collect_flags.SHOWN, shared=shared)
    return parser


def _add_engine(
    parser: Parser,
    add_flags: Callable[[argparse.ArgumentParser], None],
    *,
    shown: Mapping[str, str],
    shared: Collection[str],
) -> None:
    """Add ours and the engine's, and note which of these mean nothing where no engine runs."""
    add_flags(parser)
    own = {*shared, *(action.dest for action in parser._actions)}
    add_vllm_flags(parser, "engine", shown=shown)
    names = frozenset(action.dest for action in parser._actions if action.dest not in own)
    parser.set_defaults(add_flags=add_flags, engine_names=names)


def _add_reward(commands: "_SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("reward", help="give the samples of a dataset another reward")
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset, which is added to")
    parser.add_argument(
        "--name",
        help="that --reward-name of the other commands then takes; default: the reward's, such as "
        "tests, or the function's",
    )
    collect_flags.add_reward_flags(parser.add_argument_group("the reward"), required=True)


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
