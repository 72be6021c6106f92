"""The command ``qprobe``."""

import argparse
import os
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from qprobe.errors import QProbeError
from qprobe_server.errors import ServerError, StartupError

__all__ = ["main"]

# Read by vLLM when it is imported. The V2 runner of CUDA machines has no hooks for scoring, and the
# V1 runner is the code that every machine can run. Nothing is reported to anyone unless asked for.
_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1"}
# While collecting the scheduler runs in this process, so that the same prompts are sampled in the
# same batches: a collection that goes on comes out as one that was never stopped.
_COLLECT_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# With the default model, for the engine's processes: it is on disk, and a small machine has no room
# for vLLM's usual share of memory.
_DEFAULT_MODEL_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


def main() -> None:
    """Run the command line."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if command == "serve":
            _serve()
        elif command == "collect":
            _collect()
        else:
            # Not at the top: it imports torch, which takes a second.
            from qprobe_server.commands import arguments

            args = arguments.parse(sys.argv[1:])
            args.run(args)
    except (QProbeError, ServerError) as error:
        sys.exit(f"qprobe: {error}")
    except OSError as error:
        if command == "serve" or error.filename is None:
            raise
        sys.exit(f"qprobe: {error.filename}: {error.strerror}")


def _serve() -> None:
    _prepare_environment(_ENVIRONMENT)
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend import app, arguments

    args = arguments.parse(sys.argv[1:])
    if args.model_tag is None:
        from qprobe_server.default_model import SERVED_NAME

        args.model_tag = _choose_default_model(args)
        args.served_model_name = args.served_model_name or [SERVED_NAME]
        if not args.probe:
            shipped = sorted(Path(str(resources.files("qprobe") / "shipped")).iterdir())
            args.probe = [f"{path.stem}={path}" for path in shipped]
    args.model = args.model_tag
    app.run(args)


def _collect() -> None:
    _prepare_environment(_ENVIRONMENT | _COLLECT_ENVIRONMENT)
    from qprobe_server.commands import collect as collect_command
    from qprobe_server.vllm_backend import arguments

    args = arguments.parse(sys.argv[1:])
    if args.model is None:
        args.model = _choose_default_model(args)
    collect_command.run(args)


def _prepare_environment(environment: dict[str, str]) -> None:
    if find_spec("vllm") is None:
        raise StartupError("vLLM is not installed: install qprobe[cpu] or qprobe[gpu]")
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _choose_default_model(args: argparse.Namespace) -> str:
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
