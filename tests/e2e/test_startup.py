"""A start that only the model's own settings show to be wrong stops with one line, unloaded."""

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
def test_a_probe_that_does_not_fit(
    serve_small: list[str], make_probe: Any, fields: dict[str, Any], message: str
) -> None:
    probe = f"odd={make_probe('odd', **fields)}"
    line = fail_to_start(*serve_small, "--port", "0", "--probe", probe)
    assert line.startswith("qprobe: probe 'odd'")
    assert message in line
