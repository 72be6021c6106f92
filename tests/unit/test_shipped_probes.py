"""The probes that ship fit the default model, and say what they are."""

from importlib import resources
from pathlib import Path

import pytest

from qprobe import load_probe
from qprobe.data.provenance import read_seen
from qprobe_server.default_model import MODEL_NAME

SHIPPED = sorted(Path(str(resources.files("qprobe") / "shipped")).iterdir())


def test_there_are_two() -> None:
    assert [path.name for path in SHIPPED] == ["concise.safetensors", "python.safetensors"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_probe(path: Path) -> None:
    probe = load_probe(path)
    info = probe.info
    assert (info.base_model, info.hidden_size, info.num_layers) == (MODEL_NAME, 576, 30)
    assert info.licence == "Apache-2.0"
    assert probe.terms.states
    assert not any(each.reads_logprobs for each in probe.sums)  # so that a proxy can serve it
    assert len(read_seen(info.training)) == info.training["train_prompts"]
    assert info.training["cross_validated_reward"] > info.training["train_base"] > 0


def test_the_python_probe_recommends_early_rejection() -> None:
    (path,) = [each for each in SHIPPED if each.stem == "python"]
    info = load_probe(path).info
    assert info.schedule
    assert info.schedule[0].keep < info.k
