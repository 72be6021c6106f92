"""The flags of ``qprobe serve`` that are ours, vLLM's being beside them, and those of every server.

They are added to two parsers: to ours, which answers at once, and then to vLLM's.
"""

import argparse
from pathlib import Path

from qprobe_server.commands import values
from qprobe_server.settings import ADMIN_KEY_VARIABLE

__all__ = [
    "SHOWN",
    "add_choice_flags",
    "add_code_flags",
    "add_log_flags",
    "add_probe_flags",
    "add_serve_flags",
    "add_verbose_flag",
]

_USAGE = "qprobe serve [MODEL] [options]"
_TEXT = """vLLM's OpenAI-compatible server, with answers reranked by probes. Without MODEL it
serves SmolLM2-135M-Instruct with the probes `python` and `concise`."""
# Of vLLM's flags those that ``--help`` shows.
SHOWN = {
    "--host": "Address to listen on. Default: all of this machine's.",
    "--port": "Default: 8000.",
    "--api-key": "Key that requests must bring. May be several.",
    "--served-model-name": "Names that requests give the model. Default: MODEL.",
    "--max-model-len": "The most tokens of a prompt and its answer.",
    "--dtype": "Of weights and states. Default: auto.",
}


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Add ours of ``serve``, and say what it is."""
    parser.usage, parser.description = _USAGE, _TEXT
    add_choice_flags(parser).add_argument(
        "--schedule",
        type=values.schedule,
        metavar="default|off|16:8,32:4",
        help="Early rejection: when candidates that fall behind are dropped. 'default' is what the "
        "probe recommends; 16:8,32:4 keeps 8 after 16 tokens and 4 after 32, where the probe has "
        "heads for these. Default: off; 'default' with the default model and its own probes.",
    )
    add_probe_flags(parser)
    add_code_flags(parser)
    add_log_flags(parser)


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a server logs."""
    group = parser.add_argument_group("what it logs")
    group.add_argument(
        "--json-access-log",
        action="store_true",
        help="Log requests as JSON, one a line, instead of uvicorn's lines.",
    )
    add_verbose_flag(group)


def add_choice_flags(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the flags of probes and the choice that every server has; return their group."""
    group = parser.add_argument_group("probes and the choice")
    group.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Serve the probe in FILE under NAME. May be given several times.",
    )
    group.add_argument(
        "--default-probe",
        metavar="NAME",
        help="Probe of requests that name none. Without it they are sampled as vLLM does.",
    )
    group.add_argument(
        "--k", type=int, help="Candidates per prompt. Default: what the probe recommends."
    )
    group.add_argument(
        "--beta",
        type=float,
        help="Temperature of the choice, in units of score. Default: what the probe recommends.",
    )
    group.add_argument(
        "--max-k",
        type=int,
        default=64,
        help="The most candidates a request may ask for. Default: 64.",
    )
    group.add_argument(
        "--max-body-mib",
        type=int,
        default=32,
        metavar="MIB",
        help="The largest body of a request, in MiB. Default: 32.",
    )
    return group


def add_probe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of probes that come and go."""
    group = parser.add_argument_group("probes that come and go")
    group.add_argument(
        "--admin-api-key",
        metavar="KEY",
        help="Opens PUT and DELETE /v1/probes/NAME to requests with this key, which is also an API "
        f"key. Default: {ADMIN_KEY_VARIABLE} in the environment; without one the routes are not "
        "there.",
    )
    group.add_argument(
        "--probe-dir",
        type=Path,
        metavar="FOLDER",
        help="Keep uploaded probes there, and serve them again after a restart; one of the name of "
        "a --probe takes its place.",
    )
    group.add_argument(
        "--probe-layers",
        type=values.layers,
        metavar="15,20,final",
        help="Layers that uploaded probes may read; each costs an addition a step. Default: those "
        "of the probes that the server starts with, and final.",
    )
    group.add_argument(
        "--allow-model-mismatch",
        action="store_true",
        help="Serve probes that were trained on a model or a LoRA adapter of another name.",
    )


def add_code_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of votes that run code."""
    group = parser.add_argument_group("votes by code")
    group.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="Let requests have their candidates' code run, in a sandbox on this machine, and vote "
        "by what it does. Default: such requests are refused.",
    )
    group.add_argument(
        "--code-workers",
        type=values.count,
        metavar="NUMBER",
        help="Programs that run at a time. Default: half as many as there are cores.",
    )
    group.add_argument(
        "--code-queue",
        type=values.count,
        default=32,
        metavar="NUMBER",
        help="Prompts that vote by code at a time, sampling included; to more the server answers "
        "503. Default: 32.",
    )


def add_verbose_flag(group: "argparse._ArgumentGroup") -> None:
    """Add ``--verbose``, which every command with an engine has."""
    group.add_argument(
        "--verbose",
        action="store_true",
        help="Show vLLM's log too; VLLM_LOGGING_LEVEL in the environment says how much of it.",
    )
