"""The flags of ``qprobe collect`` that are ours, vLLM's being beside them.

They are added to two parsers: to ours, which answers at once, and then to vLLM's.
"""

import argparse

from qprobe_server.commands import values
from qprobe_server.commands.api_flags import add_api_flags
from qprobe_server.commands.prompt_source import add_source_flags, source
from qprobe_server.commands.serve_flags import add_verbose_flag
from qprobe_server.commands.shots import add_shots_flags

__all__ = ["DEFAULT_WINDOWS", "SHOWN", "add_collect_flags", "add_reward_flags"]

_USAGE = "qprobe collect PROMPTS --reward REWARD -o FOLDER [--model MODEL] [options]"
_TEXT = """Samples prompts, rewards the answers and keeps their embeddings, for training
probes. Started again with the same arguments it goes on where it was stopped. Without --model it
samples SmolLM2-135M-Instruct."""

# Of vLLM's flags those that ``--help`` shows.
SHOWN = {
    "--model": "A hub's ORG/NAME or a folder.",
    "--seed": "Of the whole collection. Default: 0.",
    "--max-model-len": "The most tokens of a prompt and its answer.",
    "--dtype": "Of weights and states. Default: auto.",
}

DEFAULT_WINDOWS = (8, 16, 24, 32, 48, 64, 96)
_SAMPLING_FLAGS = {
    "--temperature": float,
    "--top-p": float,
    "--top-k": int,
    "--min-p": float,
    "--max-tokens": int,
}


def add_collect_flags(parser: argparse.ArgumentParser) -> None:
    """Add ours of ``collect``, and say what it is."""
    parser.usage, parser.description = _USAGE, _TEXT
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
        metavar="8,16,32",
        help="Also the means of the first so many tokens. "
        f"Default: {','.join(map(str, DEFAULT_WINDOWS))}.",
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
    add_verbose_flag(group)


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
