"""Keeps the terminal to what its reader has to know: no news of libraries, but their errors.

vLLM's own logs come with ``--verbose``, or where its variables for logging are set. The engine's
processes inherit the environment, and import the command line first (multiprocessing imports the
main script again), before vLLM: so one function serves them all.
"""

import logging
import os
import warnings
from collections.abc import Mapping

__all__ = ["EXPECTED", "be_quiet", "hide_queries", "hush_libraries", "hush_uvicorn", "is_quiet"]

_QUIET = "QPROBE_QUIET"
# Whoever sets one of these wants to see what vLLM logs.
_LOGGING_OF_THE_USER = ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH")
_ENVIRONMENT = {
    _QUIET: "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Deprecations, and what multiprocessing says when a process was killed before its clean-up.
    "PYTHONWARNINGS": "ignore",
}
# Warnings of every start, by logger: what was asked for, or what nothing here can change.
EXPECTED: Mapping[str, tuple[str, ...]] = {
    "vllm.triton_utils.importing": ("Triton is installed",),
    "vllm.platforms.cpu": ("Triton is not installed", "Reset SSM cache type"),
    "vllm.config.vllm": (
        "Enforce eager set",
        "Inductor compilation was disabled",
        "Model Runner V2 requires Triton",
    ),
    "vllm.config.model": ("Default vLLM sampling parameters have been overridden",),
    # One a weight, where a checkpoint in float32 is run in a narrower dtype.
    "vllm.model_executor.models.utils": ("Attempted to load weight %s with dtype",),
    "vllm.utils.system_utils": ("Found ulimit of",),
    "vllm.utils.argparse_utils": ("Found duplicate keys",),
    "vllm.v1.worker.cpu_worker": (
        "%s is not found in LD_PRELOAD",
        "CPU backend doesn't allow to use",
    ),
    # Of every collection, whose scheduler runs in its own process.
    "vllm.engine.arg_utils": ("The global random seed is set to",),
}


def be_quiet(*, verbose: bool) -> None:
    """Settle, before vLLM is imported, whether this command and its processes are quiet.

    Args:
        verbose: Whether the user asked for vLLM's own logs.
    """
    os.environ.pop(_QUIET, None)  # of a command that runs this one
    if verbose or any(name in os.environ for name in _LOGGING_OF_THE_USER):
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    hush_libraries()


def is_quiet() -> bool:
    """Whether this command is quiet."""
    return _QUIET in os.environ


def hush_libraries() -> None:
    """Leave out the warnings that every start brings, if the command is quiet."""
    if is_quiet():
        for name, beginnings in EXPECTED.items():
            logging.getLogger(name).addFilter(_LeaveOut(beginnings))


def hush_uvicorn() -> None:
    """Leave out what uvicorn says of its start and end; its access log is another logger."""
    logging.getLogger("uvicorn.error").addFilter(_is_warning)


def hide_queries() -> None:
    """Leave the queries out of uvicorn's access log: some APIs take a key in them."""
    logging.getLogger("uvicorn.access").addFilter(_cut_query)


class _LeaveOut(logging.Filter):
    """Filters messages by how they begin, before their arguments are put in."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        return not str(record.msg).startswith(self._beginnings)


def _cut_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, str(path).partition("?")[0], version, status)
    return True


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
