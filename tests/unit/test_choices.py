"""The recipes' table of choices: what its rows must be where the right samples are known."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe.data.dataset import Sample
from qprobe.data.writer import DatasetWriter

PATH = Path(__file__).parents[2] / "probes" / "recipes" / "choices.py"
NUM_PROMPTS, N, HIDDEN = 40, 4, 4


def load_module() -> Any:
    spec = importlib.util.spec_from_file_location("choices", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_dataset(folder: Path) -> None:
    """The first feature says which samples are right; log-probabilities say nothing."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(NUM_PROMPTS, N, HIDDEN))
    manifest = {
        "model": "org/model",
        "hidden_size": HIDDEN,
        "num_layers": 6,
        "readings": ["3/mean"],
        "sampling": None,
        "num_prompts": NUM_PROMPTS,
        "prompts_per_shard": NUM_PROMPTS,
    }
    samples = [
        Sample(
            prompt=prompt,
            index=index,
            text=f"{prompt} {index}",
            token_ids=[1] * int(rng.integers(2, 9)),
            num_scored=1,
            logprob=-float(rng.random()),
            finish_reason="stop",
            seed=0,
            reward=float(states[prompt, max(index, 0), 0] > 0),
        )
        for prompt in range(NUM_PROMPTS)
        for index in range(-1, N)
    ]
    rows = [{"prompt": f"p{prompt}"} for prompt in range(NUM_PROMPTS)]
    with DatasetWriter(folder, manifest, rows) as writer:
        writer.write(0, samples, {"3/mean": torch.tensor(states.reshape(-1, HIDDEN)).half()})
        writer.finish()


def test_rows_are_what_the_choice_must_earn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two texts are equal: their majority is one sample, and a vote by scores the best."""
    write_dataset(tmp_path / "data")
    choices = load_module()
    monkeypatch.setattr(choices, "_NUM_FOLDS", 2)  # eight take four times as long
    flags = ["--layers", "3", "--objectives", "ce", "--k", "4", "--vote", "text"]
    choices.main([str(tmp_path / "data"), *flags])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {name: cells for name, *cells in (line.strip("| ").split(" | ") for line in lines)}
    assert rows["base: one sample"][1] == "0%"
    assert rows["ceiling: best by reward"][1] == "100%"
    assert rows["best by mean log-probability"][4] == "+0.000 (+0.000 to +0.000)"
    assert rows["vote by text, all alike"][0] == rows["base: one sample"][0]
    by_logprob = "vote by text, mean log-probability"
    assert rows[by_logprob][0] == rows["best by mean log-probability"][0]
    for name in ("3/mean, ce", "3/mean + numbers, ce", "vote by text, 3/mean, ce"):
        assert float(rows[name][1].rstrip("%")) > 80
