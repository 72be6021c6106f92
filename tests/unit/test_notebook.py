"""The Python of docs/training.md, as a reader runs it: from a dataset to a file that is served."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qprobe
from qprobe.data.dataset import Sample
from qprobe.data.writer import DatasetWriter
from qprobe.errors import EvaluationError
from qprobe_server.library.registry import read_probe

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
NUM_PROMPTS, N, HIDDEN = 16, 6, 3
READING = qprobe.Reading(20, "mean")


def write_dataset(folder: Path) -> None:
    """What a new user has: 16 prompts of 6 samples. Rewards are the sign of the first feature."""
    features = np.random.default_rng(0).normal(size=(NUM_PROMPTS * N, HIDDEN))
    manifest: dict[str, Any] = {
        "model": "org/model",
        "hidden_size": HIDDEN,
        "num_layers": 24,
        "readings": [str(READING)],
        "reward": "tests",
        "num_prompts": NUM_PROMPTS,
        "prompts_per_shard": NUM_PROMPTS,
    }
    samples = [
        Sample(
            prompt=i // N,
            index=i % N,
            text="",
            token_ids=[1],
            num_scored=1,
            logprob=-1.0,
            finish_reason="stop",
            seed=i,
            reward=float(features[i, 0] > 0),
        )
        for i in range(NUM_PROMPTS * N)
    ]
    rows = [{"prompt": f"p{i}"} for i in range(NUM_PROMPTS)]
    with DatasetWriter(folder, manifest, rows) as writer:
        (shard,) = writer.missing()
        writer.write(shard, samples, {str(READING): torch.tensor(features).half()})
        writer.finish()


@pytest.fixture
def data(tmp_path: Path) -> qprobe.Dataset:
    write_dataset(tmp_path / "data")
    return qprobe.Dataset.load(tmp_path / "data")


def test_the_example_of_the_docs_ends_with_a_file_that_is_served(
    data: qprobe.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = DOCS.read_text().partition("## In Python")[2]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["metrics"]["policy"]["reward"] > names["metrics"]["base"]["reward"]
    assert names["metrics"]["num_prompts"] == NUM_PROMPTS // 4
    assert names["metrics"]["notes"] == []
    served = read_probe("mine", (tmp_path / "mine.safetensors").read_bytes())
    assert served.probe.info.k == N
    assert data.digest == served.probe.info.training["dataset"]


def test_figures_are_those_of_prompts_that_were_not_trained_on(data: qprobe.Dataset) -> None:
    """With another part set aside they are others; k and beta are the probe's unless asked for."""
    settings = qprobe.TrainingSettings(objective="mse", beta=0.3)
    probe = qprobe.train(data, READING, settings, k=4, test_fraction=0.5)
    found = qprobe.evaluate(probe, data)
    assert (found["num_prompts"], found["k"], found["beta"]) == (8, 4, 0.3)
    assert [row["num_prompts"] for row in found["learning_curve"]] == [5, 8]
    asked = qprobe.evaluate(probe, data, k=2, beta=0.0, curve=False)
    assert (asked["k"], asked["beta"]) == (2, 0.0)
    assert "learning_curve" not in asked
    with pytest.raises(EvaluationError, match=r"k: must be from 1 to 6, .* got 7"):
        qprobe.evaluate(probe, data, k=7)
    with pytest.raises(EvaluationError, match=r"k: must be from 1 to 6, .* got 7"):
        qprobe.train(data, READING, k=7)


def test_what_one_must_know_is_told_and_not_printed(
    data: qprobe.Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    probe = qprobe.train(data, READING)
    data.manifest["adapter"] = {"name": "mine"}
    (note,) = qprobe.evaluate(probe, data, curve=False)["notes"]
    assert "adapter" in note
    probe.info.training.clear()
    notes = qprobe.evaluate(probe, data)["notes"]
    assert any("does not say which prompts" in each for each in notes)
    assert capfd.readouterr() == ("", "")
