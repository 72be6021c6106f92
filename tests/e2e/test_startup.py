"""Starts that cannot work stop with one line, before a model is loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

QPROBE = str(Path(sys.executable).with_name("qprobe"))


def fail_to_start(*flags: str) -> str:
    """Run ``qprobe serve`` with flags; return the last line that it prints."""
    done = subprocess.run(
        [QPROBE, "serve", *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "hidden_size: is 64"),
        ({"num_layers": 32, "layer": 31}, "num_layers: is 32, that of"),
        ({"base_model": "org/other"}, "--allow-model-mismatch"),
    ],
)
def test_a_probe_that_does_not_fit(make_probe: Any, fields: dict[str, Any], message: str) -> None:
    line = fail_to_start("--probe", f"odd={make_probe('odd', **fields)}")
    assert line.startswith("qprobe: probe 'odd'")
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe", "a=/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--k", "65"], "--k must be from 1 to --max-k (64), got 65"),
        (["--worker-cls", "some.Worker"], "--worker-cls is qprobe's own"),
    ],
)
def test_bad_flags(flags: list[str], message: str) -> None:
    line = fail_to_start(*flags)
    assert line.startswith("qprobe: ")
    assert message in line


@pytest.mark.parametrize("schedule", ["often", "16", "16:0", "32:4,16:2", "16:2,32:4", "16:x"])
def test_a_schedule_that_is_none(schedule: str) -> None:
    done = subprocess.run(
        [QPROBE, "serve", "--schedule", schedule],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "argument --schedule: " in done.stderr
    assert schedule in done.stderr


def test_version_and_help() -> None:
    from importlib.metadata import version

    shown = subprocess.run([QPROBE, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == version("qprobe")
    helped = subprocess.run(
        [QPROBE, "serve", "--help=qprobe"], capture_output=True, text=True, check=True
    )
    assert "--default-probe" in helped.stdout
