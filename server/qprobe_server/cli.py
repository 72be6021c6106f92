"""The command ``qprobe``."""

import argparse
import os
import sys
from importlib import resources
from importlib.util import find_spec

from qprobe_server.errors import StartupError

__all__ = ["main"]

# Read by vLLM when it is imported. The V2 runner of CUDA machines has no hooks for scoring, and the
# V1 runner is the code that every machine can run. Nothing is reported to anyone unless asked for.
_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1"}
# With the default model, for the engine's processes: it is on disk, and a small machine has no room
# for vLLM's usual share of memory.
_DEFAULT_MODEL_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


def main() -> None:
    """Run the command line."""
    if find_spec("vllm") is None:
        sys.exit("qprobe: vLLM is not installed: install qprobe[cpu] or qprobe[gpu] for the server")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend import app, arguments

    args = arguments.parse(sys.argv[1:])
    try:
        if args.model_tag is None:
            _choose_default_model(args)
        args.model = args.model_tag
        app.run(args)
    except StartupError as error:
        sys.exit(f"qprobe: {error}")


def _choose_default_model(args: argparse.Namespace) -> None:
    from qprobe_server.default_model import SERVED_NAME, prepare_default_model

    for name, value in _DEFAULT_MODEL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    args.model_tag = str(prepare_default_model())
    args.served_model_name = args.served_model_name or [SERVED_NAME]
    # Compiling such a model takes minutes on two cores, and makes it 1.3 times as fast.
    args.enforce_eager = "--no-enforce-eager" not in sys.argv
    if not args.probe:
        shipped = resources.files("qprobe") / "shipped" / "python.safetensors"
        args.probe = [f"python={shipped}"]
