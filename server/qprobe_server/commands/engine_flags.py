"""The flags of ``qprobe serve`` and ``qprobe collect`` that are ours, vLLM's being beside them.

They are added to two parsers: to ours, which answers at once, and then to vLLM's.
"""

import argparse
from pathlib import Path

from qprobe_server.commands import values
from qprobe_server.commands.api_flags import add_api_flags
from qprobe_server.commands.prompt_source import add_source_flags, source
from qprobe_server.commands.shots import add_shots_flags
from qprobe_server.settings import ADMIN_KEY_VARIABLE

__all__ = [
    "SHOWN",
    "add_choice_flags",
    "add_code_flags",
    "add_collect_flags",
    "add_log_flags",
    "add_probe_flags",
    "add_reward_flags",
    "add_serve_flags",
]

_SERVE_USAGE = "qprobe serve [MODEL] [options]"
_SERVE_TEXT = """vLLM's OpenAI-compatible server, with answers reranked by probes. Without MODEL it
serves SmolLM2-135M-Instruct with the probes `python` and `concise`."""
_COLLECT_USAGE = "qprobe collect PROMPTS --reward REWARD -o FOLDER [--model MODEL] [options]"
_COLLECT_TEXT = """Samples prompts, rewards the answers and keeps their embeddings, for training
probes. Started again with the same arguments it goes on where it was stopped. Without --model it
samples SmolLM2-135M-Instruct."""

# Of vLLM's flags those that ``--help`` shows, by command.
SHOWN = {
    "serve": {
        "--host": "Address to listen on. Default: all of this machine's.",
        "--port": "Default: 8000.",
        "--api-key": "Key that requests must bring. May be several.",
        "--served-model-name": "Names that requests give the model. Default: MODEL.",
        "--max-model-len": "The most tokens of a prompt and its answer.",
        "--dtype": "Of weights and states. Default: auto.",
    },
    "proxy": {
        "--shutdown-timeout": "Seconds for open requests when the server stops. Default: 0.",
        "--max-model-len": "Of the reader: the most tokens of a prompt and its answer.",
        "--dtype": "Of the reader's weights and states. Default: auto.",
    },
    "collect": {
        "--model": "A hub's ORG/NAME or a folder.",
        "--seed": "Of the whole collection. Default: 0.",
        "--max-model-len": "The most tokens of a prompt and its answer.",
        "--dtype": "Of weights and states. Default: auto.",
    },
}

_WINDOWS = (8, 16, 24, 32, 48, 64, 96)
_SAMPLING_FLAGS = {
    "--temperature": float,
    "--top-p": float,
    "--top-k": int,
    "--min-p": float,
    "--max-tokens": int,
}


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Add ours of ``serve``, and say what it is."""
    parser.usage, parser.description = _SERVE_USAGE, _SERVE_TEXT
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
    _add_verbose(group)


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
        help="Requests that vote by code at a time, sampling included; to more the server answers "
        "503. Default: 32.",
    )


def add_collect_flags(parser: argparse.ArgumentParser) -> None:
    """Add ours of ``collect``, and say what it is."""
    parser.usage, parser.description = _COLLECT_USAGE, _COLLECT_TEXT
    _add_prompts(parser)
    add_source_flags(parser)
    _add_sampling(parser)
    add_api_flags(parser)
    group = parser.add_argument_group("what is kept")
    group.add_argument(
        "--layers",
        type=values.layers,
        metavar="15,20,final",
        help="Layers to embed. Default: at a third, a half, two thirds and five sixths, and final.",
    )
    group.add_argument(
        "--windows",
        type=values.windows,
        default=_WINDOWS,
        metavar="8,16,32",
        help="Also the means of the first so many tokens. "
        f"Default: {','.join(map(str, _WINDOWS))}.",
    )
    group.add_argument(
        "--token-states",
        type=values.layers,
        metavar="15,final",
        help="Also the states of all tokens of an answer, of these of the layers: for gates on "
        "single tokens and rolling maxima. Tokens x hidden size x 2 bytes each. Default: none.",
    )
    group.add_argument(
        "--token-states-limit",
        type=values.count,
        default=20,
        metavar="GIB",
        help="Refuse to begin if these may take more. Default: 20.",
    )
    group.add_argument(
        "--prompts-per-shard",
        type=values.count,
        metavar="NUMBER",
        help="Prompts sampled in one go and written together. Default: 256 samples' worth.",
    )
    _add_verbose(group)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts and rewards")
    group.add_argument(
        "prompts",
        type=source,
        metavar="PROMPTS",
        help="File of JSON lines or Parquet, a data set's folder, or hf://datasets/ORG/NAME.",
    )
    group.add_argument(
        "-o",
        "--output",
        type=values.folder,
        required=True,
        metavar="FOLDER",
        help="The dataset's folder.",
    )
    add_reward_flags(group, required=False)
    add_shots_flags(group)
    group.add_argument(
        "--layout",
        choices=["rows", "mbpp", "mbpp-raw", "humaneval", "humaneval-raw"],
        default="rows",
        help="As MBPP or HumanEval is published, for a chat or (raw) as text to go on with; other "
        "files are known by their columns.",
    )
    group.add_argument(
        "--keep-unsolved",
        action="store_true",
        help="Go on if rows get no reward of 1 by the solution that they bring (tests only).",
    )
    group.add_argument(
        "--limit", type=values.count, metavar="NUMBER", help="Take the first so many prompts only."
    )
    group.add_argument(
        "--completions",
        action="store_true",
        help="Embed the completions that the rows bring instead of sampling.",
    )


def add_reward_flags(group: "argparse._ArgumentGroup", *, required: bool) -> None:
    """Add the flags that say what rewards completions, and how it is called."""
    group.add_argument(
        "--reward",
        required=required,
        help="tests, numeric, regex, python:MODULE_OR_FILE:FUNCTION, or an http(s) URL.",
    )
    group.add_argument(
        "--reward-workers",
        type=values.count,
        metavar="NUMBER",
        help="Calls at a time. Default: as many as there are cores, 8 of a service, 1 of a "
        "function that takes many completions.",
    )
    group.add_argument(
        "--reward-batch",
        type=values.count,
        metavar="NUMBER",
        help="Completions a call, of a function that takes many (default: 32) or of a service, "
        "which then gets lists.",
    )
    group.add_argument(
        "--reward-timeout",
        type=values.seconds,
        metavar="SECONDS",
        help="What a call may take. Default: any time, 600 of a service with all its tries.",
    )
    group.add_argument(
        "--on-reward-error",
        choices=["stop", "skip"],
        default="stop",
        help="What to do if the reward fails for a completion: stop, or leave it out of what is "
        "trained on. Default: stop.",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--n", type=values.count, metavar="NUMBER", help="Samples per prompt. Default: 16."
    )
    for flag, kind in _SAMPLING_FLAGS.items():
        group.add_argument(
            flag, type=kind, metavar="NUMBER", help="Default: the model's, as when it is served."
        )
    group.add_argument("--stop", action="append", help="Stop string. May be given several times.")
    group.add_argument(
        "--no-greedy", action="store_true", help="Leave out the greedy answer of each prompt."
    )
    group.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to sample with.")


def _add_verbose(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--verbose",
        action="store_true",
        help="Show vLLM's log too; VLLM_LOGGING_LEVEL in the environment says how much of it.",
    )
