"""The command line of ``qprobe serve``: vLLM's own, and ours beside it.

Relies on vLLM 0.32.0: ``ServeSubcommand.subparser_init`` (entrypoints/cli/serve.py).
"""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from qprobe_server.errors import StartupError
from qprobe_server.registry import ProbeRegistry
from qprobe_server.settings import Settings
from qprobe_server.vllm_backend.scoring import ADDITIONAL_CONFIG

__all__ = ["load_registry", "parse", "prepare_engine_args", "read_settings"]

_DESCRIPTION = """vLLM's OpenAI-compatible server, with answers reranked by probes. Takes every flag
of `vllm serve` and those of the group `qprobe`. Without a model it serves SmolLM2-135M-Instruct
with the probe `python`."""

# Ways to run vLLM's server in which its requests would pass us by: (flag, what to do instead).
_REFUSED_MODES = (
    ("grpc", "run one server per API process behind a load balancer"),
    ("data_parallel_multi_port_external_lb", "start one qprobe server per rank"),
    ("enable_elastic_ep", "an engine that is added later would have no probes"),
)

_KEEP_ALIVE_S = 10.0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse ``serve`` with vLLM's flags and ours; exits on a usage error, as argparse does."""
    main = FlexibleArgumentParser(prog="qprobe", description="Serve answers reranked by probes.")
    main.add_argument("--version", action="version", version=version("qprobe"))
    subparsers = main.add_subparsers(dest="subparser", required=True)
    parser: argparse.ArgumentParser = ServeSubcommand().subparser_init(subparsers)
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
        "--allow-model-mismatch",
        action="store_true",
        help="Serve probes that were trained on a model of another name.",
    )
    return main.parse_args(list(argv))


def read_settings(args: argparse.Namespace) -> Settings:
    """Return our settings from the parsed flags."""
    return Settings(
        default_probe=args.default_probe,
        k=args.k,
        beta=args.beta,
        max_k=args.max_k,
        keep_alive_s=float(args.sse_keep_alive_interval) or _KEEP_ALIVE_S,
    )


def load_registry(args: argparse.Namespace) -> ProbeRegistry:
    """Load the probes of the ``--probe`` flags.

    Raises:
        StartupError: A flag or a file is not valid.
    """
    registry = ProbeRegistry()
    for given in args.probe:
        name, equals, path = given.partition("=")
        if not equals or not path:
            raise StartupError(f"--probe {given!r}: must be NAME=FILE")
        registry.load(name, Path(path))
    return registry


def prepare_engine_args(args: argparse.Namespace, registry: ProbeRegistry, worker_cls: str) -> None:
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
    if args.worker_cls != "auto":
        raise StartupError(f"--worker-cls is qprobe's own, got {args.worker_cls!r}")
    args.worker_cls = worker_cls
    args.additional_config = {
        **(args.additional_config or {}),
        ADDITIONAL_CONFIG: {"layers": list(registry.inner_layers())},
    }
