"""The default model's sampling defaults, in a cache that another version has filled."""

import json
from pathlib import Path

import pytest

from qprobe_server.default_model import MODEL_NAME, prepare_default_model


def test_a_cached_model_gets_this_versions_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "qprobe" / "models" / MODEL_NAME
    folder.mkdir(parents=True)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.9, "top_p": 0.95}))
    assert prepare_default_model() == folder
    made = json.loads(path.read_text())
    assert made == {"eos_token_id": 2, "temperature": 0.5, "top_p": 1.0, "max_new_tokens": 256}
    before = path.stat().st_mtime_ns
    prepare_default_model()
    assert path.stat().st_mtime_ns == before
    assert list(folder.iterdir()) == [path]
