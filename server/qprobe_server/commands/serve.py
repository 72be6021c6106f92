"""``qprobe serve``: prepares the environment and the default model, then runs vLLM's server."""

import argparse
import os
from importlib.util import find_spec

from qprobe_server import quiet
from qprobe_server.commands.preflight import check_serve, shipped_probes
from qprobe_server.default_model import SERVED_NAME, prepare_default_model
from qprobe_server.errors import StartupError

__all__ = [
    "choose_default_model",
    "name_given",
    "prepare_default_server",
    "prepare_environment",
    "run",
]

# Read by vLLM when it is imported. Nothing is reported to anyone unless asked for.
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}
# The chat template of the default model knows no tools; so any parser is as good. A forced call is
# written as JSON by the tool's schema then, and not in the parser's own form, whose white space
# nothing bounds: so small a model fills it until it is cut off.
_TOOL_CALL_PARSER = "hermes"
_DEFAULT_MODEL_ENVIRONMENT = {"VLLM_ENFORCE_STRICT_TOOL_CALLING": "0"}


def run(given: argparse.Namespace) -> None:
    """Serve until a signal stops the process.

    Args:
        given: The flags as ``commands.arguments`` has read them.

    Raises:
        StartupError: vLLM is not installed, or the flags, the probes, the model and the machine do
            not go together.
    """
    is_default = given.model_tag is None and given.model is None
    prepare_environment(verbose=given.verbose, **(_DEFAULT_MODEL_ENVIRONMENT if is_default else {}))
    check_serve(given)
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend import app, arguments

    args = arguments.parse(given.argv, given.add_flags)
    args.given = name_given(given)
    args.compact_json = False
    if args.model_tag is None:
        prepare_default_server(args)
    args.model = args.model_tag
    app.run(args)


def name_given(given: argparse.Namespace) -> frozenset[str]:
    """Return the names of the flags that were set: to vLLM's parser a default looks the same."""
    return frozenset(name for name, value in vars(given).items() if value is not None)


def prepare_default_server(args: argparse.Namespace) -> None:
    """Set, where the user has not, what the default model is served with."""
    args.model_tag = choose_default_model()
    args.served_model_name = args.served_model_name or [SERVED_NAME]
    if not args.probe:
        args.probe = shipped_probes()
        if args.schedule is None:
            args.schedule = "default"
    if args.tool_call_parser is None:
        args.enable_auto_tool_choice, args.tool_call_parser = True, _TOOL_CALL_PARSER
    # So small a model fills the white space that JSON allows until it is cut off.
    args.compact_json = "structured_outputs_config" not in args.given


def prepare_environment(*, verbose: bool = False, **more: str) -> None:
    """Set what vLLM reads from the environment when it is imported, unless it is set already.

    Args:
        verbose: Whether vLLM's own logs are wanted.
        more: Further variables.

    Raises:
        StartupError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise StartupError("vLLM is not installed: install qprobe[cpu] or qprobe[gpu]")
    quiet.be_quiet(verbose=verbose)
    for name, value in {**_ENVIRONMENT, **more}.items():
        os.environ.setdefault(name, value)


def choose_default_model() -> str:
    """Return the folder of the default model, and keep off the network: it is on disk."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return str(prepare_default_model())
