"""``qprobe serve``: prepares the environment and the default model, then runs vLLM's server."""

import argparse
import os
import sys
from importlib.util import find_spec

from qprobe_server.commands.preflight import check_serve, shipped_probes
from qprobe_server.errors import StartupError

__all__ = ["choose_default_model", "prepare_environment", "run"]

# Read by vLLM when it is imported. The V2 runner of CUDA machines has no hooks for scoring, and the
# V1 runner is the code that every machine can run. Nothing is reported to anyone unless asked for.
_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1"}
# With the default model, for the engine's processes: it is on disk, and a small machine has no room
# for vLLM's usual share of memory.
_DEFAULT_MODEL_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


def run(given: argparse.Namespace) -> None:
    """Serve until a signal stops the process.

    Args:
        given: The flags as ``commands.arguments`` has read them.

    Raises:
        StartupError: vLLM is not installed, or the flags, the probes, the model and the machine do
            not go together.
    """
    prepare_environment()
    check_serve(given)
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend import app, arguments

    args = arguments.parse(given.argv, given.add_flags)
    if args.model_tag is None:
        from qprobe_server.default_model import SERVED_NAME

        args.model_tag = choose_default_model(args)
        args.served_model_name = args.served_model_name or [SERVED_NAME]
        if not args.probe:
            args.probe = shipped_probes()
    args.model = args.model_tag
    app.run(args)


def prepare_environment(**more: str) -> None:
    """Set what vLLM reads from the environment when it is imported, unless it is set already.

    Raises:
        StartupError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise StartupError("vLLM is not installed: install qprobe[cpu] or qprobe[gpu]")
    for name, value in {**_ENVIRONMENT, **more}.items():
        os.environ.setdefault(name, value)


def choose_default_model(args: argparse.Namespace) -> str:
    """Return the folder of the default model, and set what such a model wants."""
    from qprobe_server.default_model import prepare_default_model
    from qprobe_server.vllm_backend.checks import choose_block_size, choose_dtype

    for name, value in _DEFAULT_MODEL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if args.dtype == "auto":
        args.dtype = choose_dtype()
    if args.block_size is None:
        args.block_size = choose_block_size()
    # Compiling such a model takes minutes on two cores, and makes it 1.3 times as fast.
    args.enforce_eager = "--no-enforce-eager" not in sys.argv
    return str(prepare_default_model())
