"""The command line: one parser for all commands, which imports nothing heavy."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

from qprobe_server.commands import collect_flags, proxy_flags, serve_flags
from qprobe_server.commands.dataset_commands import add_dataset_commands
from qprobe_server.commands.parser import Parser, add_vllm_flags, expand_config, normalize

if TYPE_CHECKING:  # the class is argparse's own secret
    from argparse import _SubParsersAction

__all__ = ["parse"]

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
    add_dataset_commands(commands)
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
