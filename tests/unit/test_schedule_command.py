"""``qprobe schedule``: which prompts it chooses on, what it writes, and how it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Probe, load_probe, save_probe
from qprobe.data.dataset import Dataset, Sample
from qprobe.data.provenance import read_seen
from qprobe.data.split import split_prompts
from qprobe.data.writer import DatasetWriter
from qprobe.evaluation.held_out import list_unseen
from qprobe.probe.schedule import format_schedule
from qprobe.rejection import recipe
from qprobe.rejection.scores import cross_fit, score_samples
from qprobe.reports import schedule as report
from qprobe.training.fit import TrainingSettings
from qprobe_server import cli

NUM_PROMPTS, N, HIDDEN = 24, 6, 3
MANIFEST: dict[str, Any] = {
    "model": "org/model",
    "hidden_size": HIDDEN,
    "num_layers": 6,
    "readings": ["3/mean", "3/mean/4", "3/mean/8"],
    "sampling": None,
    "reward": "tests",
    "prompts": {"name": "p.jsonl", "sha256": "f00"},
    "num_prompts": NUM_PROMPTS,
    "prompts_per_shard": NUM_PROMPTS,
}


def write_dataset(folder: Path, *, named: str = "p", **manifest: Any) -> Path:
    """Rewards are the sign of the first feature; beginnings show it with noise."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_PROMPTS * N, HIDDEN))
    noise = rng.normal(size=features.shape)
    made = MANIFEST | manifest
    samples = [
        Sample(
            prompt=i // N,
            index=i % N,
            text="a completion nobody may see",
            token_ids=[1] * int(rng.integers(2, 20)),
            num_scored=1,
            logprob=-1.0,
            finish_reason="stop",
            seed=i,
            reward=float(features[i, 0] > 0),
        )
        for i in range(NUM_PROMPTS * N)
    ]
    rows = [{"prompt": f"{named}{i}"} for i in range(NUM_PROMPTS)]
    embeddings = {
        "3/mean": features,
        "3/mean/4": features + noise,
        "3/mean/8": features + noise / 2,
    }
    with DatasetWriter(folder, made, rows) as writer:
        (shard,) = writer.missing()
        kept = {name: torch.tensor(embeddings[name]).half() for name in made["readings"]}
        writer.write(shard, samples, kept)
        writer.finish()
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["qprobe", *map(str, arguments)])
    cli.main()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "p.safetensors"
    train(monkeypatch, data, path, "--checkpoints", "4,8")
    return path


def train(monkeypatch: pytest.MonkeyPatch, data: Path, path: Path, *flags: object) -> None:
    small = ("--k", N, "--folds", 2, "--objective", "mse", "--weight-decays", 1)
    run(monkeypatch, "train", data, "--layer", 3, *small, *flags, "-o", path)


def choose(
    monkeypatch: pytest.MonkeyPatch, data: Path, probe: Path, *flags: object
) -> tuple[Path, Path]:
    output, report = probe.parent / "out.safetensors", probe.parent / "report"
    run(monkeypatch, "schedule", data, probe, "-o", output, "--report", report, *flags)
    return output, report


def test_the_probe_is_the_same_but_for_what_was_chosen(
    monkeypatch: pytest.MonkeyPatch, data: Path, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = choose(monkeypatch, data, probe, "--k", 5, "--beta", 0.2, "--budget", 0.8)
    before, after = load_probe(probe), load_probe(output)
    assert (after.info.k, after.info.beta) == (5, 0.2)
    assert after.info.training == before.info.training
    for mine, other in zip(after.sums, before.sums, strict=True):
        assert mine.readings == other.readings
        assert np.array_equal(mine.states[0].weight, other.states[0].weight)
        assert mine.bias == other.bias
    found = json.loads((report / "schedule.json").read_text())
    assert format_schedule(after.info.schedule) == found["chosen"]["schedule"] != ""
    assert found["num_prompts"] == {"choice": 18, "unseen": 6}
    assert found["chosen"]["choice"]["tokens"] <= 0.8 * 5 * 20
    printed = capsys.readouterr().out
    share = f"{found['chosen']['unseen']['tokens_share']:.0%} of the tokens"
    for text in (found["chosen"]["schedule"], "best of 5", share, str(output)):
        assert text in printed
    page = (report / "schedule.html").read_text()
    assert found["chosen"]["schedule"] in page
    assert "nobody may see" not in page
    assert (report / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in report.iterdir()) == [
        "schedule.html",
        "schedule.json",
        "schedule.png",
    ]


def test_eval_measures_the_schedule_on_the_same_unseen_prompts(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    probe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, report = choose(monkeypatch, data, probe, "--budget", 0.8)
    chosen = json.loads((report / "schedule.json").read_text())["chosen"]
    assert chosen["schedule"]
    run(monkeypatch, "eval", output, data, "-o", report, "--no-learning-curve")
    found = json.loads((report / "metrics.json").read_text())["schedule"]
    assert found == {"schedule": chosen["schedule"], **chosen["unseen"]}
    assert f"schedule {chosen['schedule']}: {found['reward']:.4f}" in capsys.readouterr().out
    assert f"schedule {chosen['schedule']} it earns" in (report / "report.html").read_text()
    # Not of a probe without one; and a dataset that lacks a beginning still tells all else.
    run(monkeypatch, "eval", probe, data, "-o", report, "--no-learning-curve")
    assert "schedule" not in json.loads((report / "metrics.json").read_text())
    poor = write_dataset(probe.parent / "poor", readings=["3/mean"])
    run(monkeypatch, "eval", output, poor, "-o", report, "--no-learning-curve")
    assert "schedule" not in json.loads((report / "metrics.json").read_text())
    assert "schedule is not measured: reading: '3/mean/" in capsys.readouterr().err


def test_no_score_to_choose_on_was_trained_on_its_own_prompt(data: Path, probe: Path) -> None:
    """Other rewards of a prompt change the scores of others, and never its own."""
    dataset, trained = Dataset.load(data), load_probe(probe)
    settings = TrainingSettings(objective="mse", num_folds=2, weight_decays=(1.0,))

    def fit() -> Any:
        return cross_fit(dataset, trained, settings, progress=lambda: None)

    before, mine = fit(), dataset.groups == 3
    dataset.rewards[mine] = 5 * np.arange(N)
    after = fit()
    for one, other in (
        (before.final, after.final),
        *((before.heads[m], after.heads[m]) for m in (4, 8)),
    ):
        assert (one[mine] == other[mine]).all()
        assert (one != other).any()


@pytest.mark.parametrize("seed", range(5))
def test_few_prompts_that_tell_samples_apart_are_dealt_out_evenly(
    data: Path, probe: Path, seed: int
) -> None:
    """What ``train`` takes is taken here: of 4 such prompts in 4 folds, 3 are to train on."""
    dataset = Dataset.load(data)
    dataset.rewards[dataset.groups >= 4] = 0.0
    dataset.rewards[dataset.groups < 4] = np.tile(np.arange(N), 4)
    settings = TrainingSettings(objective="mse", num_folds=4, weight_decays=(1.0,), seed=seed)
    found = cross_fit(dataset, load_probe(probe), settings, progress=lambda: None)
    assert np.isfinite(found.final).all()


def test_prompts_that_the_probe_has_not_seen_are_halved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, probe: Path
) -> None:
    """Half to choose on by the probe as it is, the other half to report on, and for ``eval``."""
    other = write_dataset(tmp_path / "other", named="q")
    monkeypatch.setattr(recipe, "cross_fit", None)  # nothing is trained
    scored: list[list[str]] = []

    def spy(probe: Probe, dataset: Dataset) -> Any:
        scored.append([row["prompt"] for row in dataset.prompts])
        return score_samples(probe, dataset)

    monkeypatch.setattr(recipe, "score_samples", spy)
    output, report = choose(monkeypatch, other, probe, "--budget", 0.9)
    rows = Dataset.load(other).prompts
    halves = split_prompts(rows, test_fraction=0.5)
    assert scored == [[rows[i]["prompt"] for i in half] for half in halves]
    found = json.loads((report / "schedule.json").read_text())
    assert found["num_prompts"] == {"choice": 12, "unseen": 12}
    info = load_probe(output).info
    assert list_unseen(info, Dataset.load(other)) == halves[1]
    assert read_seen(info.training) == read_seen(load_probe(probe).info.training)
    # A schedule that is chosen anew is chosen on the same half.
    again, _ = choose(monkeypatch, other, output, "--budget", 0.7)
    assert list_unseen(load_probe(again).info, Dataset.load(other)) == halves[1]


def test_a_part_of_what_the_probe_was_trained_on_is_refused(
    monkeypatch: pytest.MonkeyPatch, data: Path, probe: Path
) -> None:
    info = load_probe(probe).info
    monkeypatch.setitem(info.training, "train_prompts", 20)
    changed = probe.with_name("changed.safetensors")
    loaded = load_probe(probe)
    save_probe(Probe(info, loaded.terms, loaded.heads), changed)
    with pytest.raises(SystemExit, match="folder: has 18 of the 20 prompts"):
        choose(monkeypatch, data, changed)


def test_another_adapter_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, probe: Path
) -> None:
    other = write_dataset(tmp_path / "other", adapter={"name": "mine"})
    with pytest.raises(SystemExit, match=r"adapter: is \{'name': 'mine'\} in the dataset"):
        choose(monkeypatch, other, probe)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--budget", 0), "--budget must be above 0 and at most 1, got 0.0"),
        (("--budget", 1.5), "--budget must be above 0 and at most 1, got 1.5"),
        (("--budget", "nan"), "--budget must be above 0 and at most 1, got nan"),
        (("--budget", 0.01), r"budget: must be at least 0\.\d+, .* got 0.01"),
        (("--reward", 3), r"reward: must be at most \d\.\d+, .* got 3.0"),
        (("--reward", "nan"), "--reward must be a finite number, got nan"),
        (("--k", 7), "k: must be from 1 to 6, the fewest samples of a prompt, got 7"),
        (("--k", 0), "k: must be from 1 to 6"),
        (("--beta", -1), "--beta must be a finite number >= 0, got -1.0"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    probe: Path,
    flags: tuple[object, ...],
    text: str,
) -> None:
    with pytest.raises(SystemExit, match=text):
        choose(monkeypatch, data, probe, *flags)
    assert not (probe.parent / "out.safetensors").exists()
    assert not (probe.parent / "report").exists()


def test_a_probe_without_heads_and_a_dataset_without_their_readings_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, probe: Path
) -> None:
    plain = tmp_path / "plain.safetensors"
    train(monkeypatch, data, plain)
    with pytest.raises(SystemExit, match="checkpoints: are none: train the probe"):
        choose(monkeypatch, data, plain)
    poor = write_dataset(tmp_path / "poor", readings=["3/mean", "3/mean/4"])
    with pytest.raises(SystemExit, match=r"reading: '3/mean/8' is not in the dataset"):
        choose(monkeypatch, poor, probe)
    with pytest.raises(SystemExit, match=r"--output .* must be a file"):
        run(monkeypatch, "schedule", data, probe, "-o", tmp_path, "--report", tmp_path / "r")
    with pytest.raises(SystemExit, match=r"--report .* must be a folder"):
        run(monkeypatch, "schedule", data, probe, "-o", tmp_path / "o", "--report", probe)


def test_a_report_that_cannot_be_written_leaves_no_probe(
    monkeypatch: pytest.MonkeyPatch, data: Path, probe: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "report")

    monkeypatch.setattr(report, "write_schedule_report", fail)
    with pytest.raises(SystemExit, match="report: No space left"):
        choose(monkeypatch, data, probe, "--budget", 0.9)
    assert not (probe.parent / "out.safetensors").exists()
