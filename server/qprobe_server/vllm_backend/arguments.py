"""vLLM's command lines for ``qprobe serve`` and ``qprobe collect``, and what its engine is told.

Relies on vLLM 0.32.0: ``ServeSubcommand.subparser_init`` (entrypoints/cli/serve.py) and
``EngineArgs.add_cli_args`` (engine/arg_utils.py).
"""

import argparse
from collections.abc import Callable, Sequence

from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from qprobe_server.errors import StartupError
from qprobe_server.settings import find_admin_key
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

__all__ = ["claim_worker", "parse", "prepare_engine_args"]


def parse(
    argv: Sequence[str], add_flags: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """Parse ``serve`` or ``collect`` as vLLM does; exits on a usage error, as argparse does.

    Args:
        argv: The command, then its arguments.
        add_flags: Adds the flags that are not vLLM's.

    Raises:
        StartupError: vLLM refuses what it does not leave to argparse.
    """
    main = FlexibleArgumentParser(prog="qprobe")
    subparsers = main.add_subparsers(dest="subparser", required=True)
    if argv[0] == "serve":
        parser = ServeSubcommand().subparser_init(subparsers)
        parser.epilog = None
    else:
        parser = subparsers.add_parser(argv[0])
        EngineArgs.add_cli_args(parser)
        parser.set_defaults(model=None)
    add_flags(parser)
    try:
        return main.parse_args(list(argv))
    except ValueError as error:
        raise StartupError(str(error)) from error


def prepare_engine_args(args: argparse.Namespace, layers: Sequence[int], worker_cls: str) -> None:
    """Put into vLLM's arguments what scoring needs."""
    # Where an API key is wanted the admin key is one. vLLM takes an empty key for none.
    keys = [key for key in args.api_key or [envs.VLLM_API_KEY] if key]
    admin_key = find_admin_key(args)
    if admin_key is not None and keys:
        args.api_key = [*keys, admin_key]
    claim_worker(args, worker_cls, layers)


def claim_worker(args: argparse.Namespace, worker_cls: str, layers: Sequence[int]) -> None:
    """Have vLLM use our worker, with some inner layers exposed."""
    args.worker_cls = worker_cls
    args.additional_config = {
        **(args.additional_config or {}),
        ADDITIONAL_CONFIG: {"layers": list(layers)},
    }
