"""Quiet by default: expected warnings are left out, others are not; and whoever asks hears all."""

import logging
import os
from collections.abc import Iterator

import pytest

from qprobe_server import quiet

EXPECTED = ("vllm.platforms.cpu", "Triton is not installed. triton-cpu is expected on x86 CPUs.")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a test does to the environment, and to loggers."""
    before = dict(os.environ)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "QPROBE_QUIET"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)
    for name in (EXPECTED[0], "uvicorn.error"):
        logging.getLogger(name).filters.clear()


def is_shown(name: str, message: str, level: int = logging.WARNING) -> bool:
    logger = logging.getLogger(name)
    record = logger.makeRecord(name, level, "file", 1, message, (), None)
    return bool(logger.filter(record))


def test_expected_warnings_are_left_out_and_no_others() -> None:
    quiet.be_quiet(verbose=False)
    assert quiet.is_quiet()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert not is_shown(*EXPECTED)
    assert is_shown(EXPECTED[0], "Dual-Batch Overlap is not supported on CPU, disabled.")


def test_the_engines_processes_do_as_the_first() -> None:
    """They have its environment only."""
    os.environ["QPROBE_QUIET"] = "1"
    quiet.hush_libraries()
    assert not is_shown(*EXPECTED)


@pytest.mark.parametrize("asked", ["flag", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH"])
def test_whoever_asks_hears_all(asked: str) -> None:
    os.environ["QPROBE_QUIET"] = "1"  # of an outer command
    if asked != "flag":
        os.environ[asked] = "INFO"
    before = dict(os.environ)
    quiet.be_quiet(verbose=asked == "flag")
    assert not quiet.is_quiet()
    assert is_shown(*EXPECTED)
    assert os.environ == {k: v for k, v in before.items() if k != "QPROBE_QUIET"}


def test_uvicorns_errors_are_heard() -> None:
    quiet.hush_uvicorn()
    assert not is_shown("uvicorn.error", "Application startup complete.", logging.INFO)
    assert is_shown("uvicorn.error", "Exception in ASGI application", logging.ERROR)
    assert is_shown("uvicorn.access", "GET /", logging.INFO)
