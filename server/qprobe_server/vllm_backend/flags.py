"""Writes down which flags vLLM has, so that a command line can be checked without importing it.

Run with another vLLM, and after it tests/engine/test_vllm_contract.py::test_the_flags_of_vllm::

    python -m qprobe_server.vllm_backend.flags

Relies on vLLM 0.32.0: ``ServeSubcommand.subparser_init`` (entrypoints/cli/serve.py) and
``EngineArgs.add_cli_args`` (engine/arg_utils.py).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

__all__ = ["PATH", "describe_flags"]

PATH = Path(__file__).with_suffix(".json")


def describe_flags() -> dict[str, list[dict[str, Any]]]:
    """Return vLLM's flags: those of every ``engine``, and those of its ``server`` besides.

    Each has ``flags``, its spellings; ``nargs`` as argparse has it, 0 for none; and where they say
    what is accepted, ``type`` (int or float) and ``choices``.
    """
    engine = FlexibleArgumentParser()
    EngineArgs.add_cli_args(engine)
    subparsers = FlexibleArgumentParser().add_subparsers()
    server = ServeSubcommand().subparser_init(subparsers)
    engine_flags = [_describe(each) for each in _optional(engine)]
    server_flags = [_describe(each) for each in _optional(server)]
    return {
        "engine": engine_flags,
        "server": [each for each in server_flags if each not in engine_flags],
    }


def _optional(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [each for each in parser._actions if each.option_strings and each.dest != "help"]


def _describe(action: argparse.Action) -> dict[str, Any]:
    made: dict[str, Any] = {"flags": list(action.option_strings), "nargs": action.nargs}
    if action.type in (int, float):
        made["type"] = action.type.__name__
    # Any other type may turn what is written into something else before it is looked up.
    if action.choices is not None and action.type in (str, int):
        made["choices"] = list(action.choices)
    return made


def _write() -> None:
    groups = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, flags)) + "\n]"
        for name, flags in describe_flags().items()
    ]
    PATH.write_text("{\n" + ",\n".join(groups) + "\n}\n")


if __name__ == "__main__":
    _write()
