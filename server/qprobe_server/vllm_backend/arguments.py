"""The command lines of ``qprobe serve`` and ``qprobe collect``: vLLM's flags, and ours beside them.

Relies on vLLM 0.32.0: ``ServeSubcommand.subparser_init`` (entrypoints/cli/serve.py) and
``EngineArgs.add_cli_args`` (engine/arg_utils.py).
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from qprobe import ProbeFileError
from qprobe.probe.network import Layer
from qprobe.probe.schedule import Schedule, Step, check_schedule
from qprobe_server.errors import StartupError
from qprobe_server.library.fit import find_inner_layers
from qprobe_server.library.registry import LoadedProbe, read_probe
from qprobe_server.library.store import ProbeStore
from qprobe_server.settings import Settings
from qprobe_server.vllm_backend.worker.scoring import ADDITIONAL_CONFIG

__all__ = [
    "choose_layers",
    "claim_worker",
    "parse",
    "prepare_engine_args",
    "read_probes",
    "read_settings",
]

_logger = logging.getLogger(__name__)

_DESCRIPTION = """vLLM's OpenAI-compatible server, with answers reranked by probes. Takes every flag
of `vllm serve` and those of the group `qprobe`. Without a model it serves SmolLM2-135M-Instruct
with the probes `python` and `concise`."""

_COLLECT_DESCRIPTION = """Samples prompts, rewards the answers and keeps their embeddings, for
training probes. Takes vLLM's engine flags and those of the group `qprobe`; `--seed` is the
collection's. Started again with the same arguments it goes on where it was stopped. Without --model
it samples SmolLM2-135M-Instruct."""

DEFAULT_WINDOWS = (8, 16, 24, 32, 48, 64, 96)
_SAMPLING_FLAGS = {
    "--temperature": float,
    "--top-p": float,
    "--top-k": int,
    "--min-p": float,
    "--max-tokens": int,
}

# Ways to run vLLM's server in which its requests would pass us by: (flag, what to do instead).
_REFUSED_MODES = (
    ("grpc", "run one server per API process behind a load balancer"),
    ("data_parallel_multi_port_external_lb", "start one qprobe server per rank"),
    ("enable_elastic_ep", "an engine that is added later would have no probes"),
)

_KEEP_ALIVE_S = 10.0
_ADMIN_KEY_VARIABLE = "QPROBE_ADMIN_API_KEY"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse ``serve`` or ``collect``; exits on a usage error, as argparse does."""
    main = FlexibleArgumentParser(prog="qprobe")
    subparsers = main.add_subparsers(dest="subparser", required=True)
    _add_serve(ServeSubcommand().subparser_init(subparsers))
    collect = subparsers.add_parser(
        "collect",
        description=_COLLECT_DESCRIPTION,
        usage="qprobe collect PROMPTS --reward REWARD -o FOLDER [options]",
    )
    EngineArgs.add_cli_args(collect)
    collect.set_defaults(model=None)
    _add_collect(collect)
    return main.parse_args(list(argv))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.usage = "qprobe serve [model] [options]"
    parser.epilog = None
    group = parser.add_argument_group("qprobe")
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
        "--max-k", type=int, default=64, help="The most candidates a request may ask for."
    )
    group.add_argument(
        "--schedule",
        type=_schedule,
        default=(),
        metavar="default|off|16:8,32:4",
        help="Early rejection: when candidates that fall behind are dropped. 'default' is what the "
        "probe recommends; 16:8,32:4 keeps 8 after 16 tokens and 4 after 32, where the probe has "
        "heads for these. Default: off.",
    )
    group.add_argument(
        "--allow-model-mismatch",
        action="store_true",
        help="Serve probes that were trained on a model of another name.",
    )
    group.add_argument(
        "--admin-api-key",
        metavar="KEY",
        default=os.environ.get(_ADMIN_KEY_VARIABLE) or None,
        help="Opens PUT and DELETE /v1/probes/NAME to requests with this key, which is also an API "
        f"key. Default: {_ADMIN_KEY_VARIABLE} in the environment; without one the routes are not "
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
        type=_layers,
        metavar="15,20,final",
        help="Layers that uploaded probes may read; each costs an addition a step. Default: those "
        "of the probes that the server starts with, and final.",
    )
    group.add_argument(
        "--json-access-log",
        action="store_true",
        help="Log requests as JSON, one a line, instead of uvicorn's lines.",
    )


def _add_collect(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("qprobe")
    group.add_argument("prompts", type=Path, metavar="PROMPTS", help="File of prompts.")
    group.add_argument("-o", "--output", type=Path, required=True, help="The dataset's folder.")
    group.add_argument(
        "--layout",
        choices=["rows", "mbpp", "humaneval"],
        default="rows",
        help="How the file is laid out: JSON lines, or as MBPP or HumanEval is published.",
    )
    group.add_argument(
        "--reward",
        help="tests, numeric, regex, python:MODULE_OR_FILE:FUNCTION, or an http(s) URL.",
    )
    group.add_argument(
        "--reward-workers",
        type=_count,
        help="Rewards at a time. Default: as many as there are cores, 8 of a service.",
    )
    group.add_argument(
        "--completions",
        action="store_true",
        help="Embed the completions that the rows bring instead of sampling.",
    )
    group.add_argument("--n", type=_count, help="Samples per prompt. Default: 16.")
    group.add_argument("--limit", type=_count, help="Take the first so many prompts only.")
    for flag, kind in _SAMPLING_FLAGS.items():
        group.add_argument(flag, type=kind, help="Default: the model's, as when it is served.")
    group.add_argument("--stop", action="append", help="Stop string. May be given several times.")
    group.add_argument(
        "--no-greedy", action="store_true", help="Leave out the greedy answer of each prompt."
    )
    group.add_argument(
        "--layers",
        type=_layers,
        metavar="15,20,final",
        help="Layers to embed. Default: at a third, a half, two thirds and five sixths, and final.",
    )
    group.add_argument(
        "--windows",
        type=_windows,
        default=DEFAULT_WINDOWS,
        metavar="8,16,32",
        help="Also the means of the first so many tokens. Default: 8,16,24,32,48,64,96.",
    )
    group.add_argument(
        "--prompts-per-shard",
        type=_count,
        help="Prompts sampled in one go and written together. Default: 256 samples' worth.",
    )
    group.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to sample with.")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _layers(text: str) -> list[Layer]:
    return ["final" if each == "final" else _count(each) for each in text.split(",")]


def _windows(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(each) for each in text.split(",") if each}))


def _schedule(text: str) -> Schedule | Literal["default"]:
    if text == "default":
        return "default"
    if text == "off":
        return ()
    steps = []
    for part in text.split(","):
        tokens, colon, keep = part.partition(":")
        if not (colon and tokens.isdecimal() and keep.isdecimal()):
            raise argparse.ArgumentTypeError(
                f"must be 'default', 'off' or pairs of tokens and keep such as 16:8,32:4, "
                f"got {text!r}"
            )
        steps.append(Step(int(tokens), int(keep)))
    try:
        check_schedule(steps)
    except ValueError as error:
        place, said = error.args
        raise argparse.ArgumentTypeError(f"{place} {said}, in {text!r}") from error
    return tuple(steps)


def read_settings(args: argparse.Namespace) -> Settings:
    """Return our settings from the parsed flags.

    Raises:
        StartupError: The admin key is empty, or everyone's.
    """
    if args.admin_api_key is not None:
        # vLLM takes --api-key, else its environment.
        keys = args.api_key or [envs.VLLM_API_KEY]
        if not args.admin_api_key.strip():
            raise StartupError("--admin-api-key must not be empty")
        if args.admin_api_key in keys:
            raise StartupError("--admin-api-key must differ from --api-key")
    return Settings(
        default_probe=args.default_probe,
        k=args.k,
        beta=args.beta,
        max_k=args.max_k,
        schedule=args.schedule,
        keep_alive_s=float(args.sse_keep_alive_interval) or _KEEP_ALIVE_S,
        admin_api_key=args.admin_api_key,
        json_access_log=args.json_access_log,
    )


def read_probes(args: argparse.Namespace, store: ProbeStore | None) -> list[LoadedProbe]:
    """Read the probes of the ``--probe`` flags, then those that were uploaded before.

    Raises:
        StartupError: A flag or a file is not valid.
    """
    loaded: dict[str, LoadedProbe] = {}
    for given in args.probe:
        name, equals, path = given.partition("=")
        if not equals or not path:
            raise StartupError(f"--probe {given!r}: must be NAME=FILE")
        if name in loaded:
            raise StartupError(f"--probe {name!r}: the name is given twice")
        try:
            loaded[name] = read_probe(name, Path(path).read_bytes())
        except (ProbeFileError, OSError) as error:
            raise StartupError(f"--probe {given!r}: {error}") from error
    for each in store.restore() if store is not None else ():
        if each.name in loaded:
            _logger.info("probe %s: the uploaded one takes the place of --probe", each.name)
        loaded[each.name] = each
    return list(loaded.values())


def choose_layers(args: argparse.Namespace, probes: Sequence[LoadedProbe]) -> tuple[int, ...]:
    """Return the inner layers to expose.

    Raises:
        StartupError: A probe reads one that ``--probe-layers`` leaves out.
    """
    if args.probe_layers is None:
        return find_inner_layers([each.probe.info for each in probes])
    asked = tuple(sorted({layer for layer in args.probe_layers if layer != "final"}))
    for each in probes:
        layer = each.probe.info.layer
        if layer != "final" and layer not in asked:
            raise StartupError(
                f"probe {each.name!r} reads layer {layer}, which --probe-layers leaves out"
            )
    return asked


def prepare_engine_args(args: argparse.Namespace, layers: Sequence[int], worker_cls: str) -> None:
    """Put into vLLM's arguments what scoring needs.

    Raises:
        StartupError: A flag of vLLM's cannot be had together with probes.
    """
    for name, instead in _REFUSED_MODES:
        if getattr(args, name, False):
            raise StartupError(f"--{name.replace('_', '-')} cannot be used with qprobe: {instead}")
    if (args.api_server_count or 1) != 1 and not args.headless:
        raise StartupError(
            f"--api-server-count must be 1 with qprobe, got {args.api_server_count}: run more "
            "servers behind a load balancer"
        )
    # Where an API key is wanted the admin key is one. vLLM takes an empty key for none.
    keys = [key for key in args.api_key or [envs.VLLM_API_KEY] if key]
    if args.admin_api_key is not None and keys:
        args.api_key = [*keys, args.admin_api_key]
    claim_worker(args, worker_cls, layers)


def claim_worker(args: argparse.Namespace, worker_cls: str, layers: Sequence[int]) -> None:
    """Have vLLM use our worker, with some inner layers exposed.

    Raises:
        StartupError: Another worker class was asked for.
    """
    if args.worker_cls not in ("auto", worker_cls):
        raise StartupError(f"--worker-cls is qprobe's own, got {args.worker_cls!r}")
    args.worker_cls = worker_cls
    args.additional_config = {
        **(args.additional_config or {}),
        ADDITIONAL_CONFIG: {"layers": list(layers)},
    }
