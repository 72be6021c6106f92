"""The recipes' comparison: every prompt is judged by a probe that has not seen it."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe.data.dataset import Dataset, Reading, Sample
from qprobe.training.fit import TrainingSettings, fit_probe

PATH = Path(__file__).parents[2] / "probes" / "recipes" / "compare.py"
NUM_PROMPTS, N, HIDDEN = 20, 6, 4
GOOD, BAD = Reading(3, "mean"), Reading("final", "mean")
SETTINGS = TrainingSettings(weight_decays=(1.0,), num_folds=2)


def load_module() -> Any:
    spec = importlib.util.spec_from_file_location("compare", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load_module()


def make_dataset() -> Dataset:
    """The first feature of GOOD is the reward; BAD is noise."""
    rng = np.random.default_rng(0)
    good, bad = torch.tensor(rng.normal(size=(2, NUM_PROMPTS * N, HIDDEN))).half()
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
            reward=float(good[i, 0] > 0),
        )
        for i in range(NUM_PROMPTS * N)
    ]
    manifest = {"readings": [str(GOOD), str(BAD)]}
    prompts: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(NUM_PROMPTS)]
    none = np.full(NUM_PROMPTS, np.nan)
    return Dataset(manifest, prompts, samples, {GOOD: good, BAD: bad}, none)


def test_no_probe_has_seen_the_prompt_it_is_judged_on(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset()
    features = dataset.features(GOOD)
    trained_on = []

    def record(known: list[torch.Tensor], rewards: Any, groups: Any, *rest: Any) -> Any:
        trained_on.append(set(groups.tolist()))
        return fit_probe(known, rewards, groups, *rest)

    monkeypatch.setattr(compare, "fit_probe", record)
    found = compare.held_out_rewards(dataset, features, SETTINGS, k=N)
    assert found.shape == (NUM_PROMPTS,)
    held_out = [set(range(NUM_PROMPTS)) - known for known in trained_on]
    assert sorted(prompt for fold in held_out for prompt in fold) == list(range(NUM_PROMPTS))
    trained_on.clear()
    compare.held_out_rewards(dataset, features, SETTINGS, k=N, train_prompts=7)
    assert [len(known) for known in trained_on] == [7] * 5


def test_the_planted_reading_is_nearly_the_ceiling_and_noise_is_the_base() -> None:
    """A prompt of six samples has a right one but with chance 2^-6; half of all are right."""
    dataset = make_dataset()
    good = compare.held_out_rewards(dataset, dataset.features(GOOD), SETTINGS, k=N).mean()
    bad = compare.held_out_rewards(dataset, dataset.features(BAD), SETTINGS, k=N).mean()
    assert good > 0.9
    # 20 prompts, a choice of one of six that is right by half: a standard deviation of 0.11.
    assert abs(bad - 0.5) < 4 * 0.11


def test_the_variants_differ_in_one_thing_each() -> None:
    variants = compare._list_variants(make_dataset(), GOOD, "ce")
    assert len({name for name, *_ in variants}) == len(variants)
    changed = {name: (readings, size, changes) for name, readings, size, changes in variants}
    assert changed["final/mean"] == ([BAD], 0, {})
    assert changed["2 layers concatenated"] == ([GOOD, BAD], 0, {})
    assert changed["trained on 10 prompts, not 16"] == ([GOOD], 10, {})
