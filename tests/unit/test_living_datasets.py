"""Datasets after they were collected: other rewards, several folders as one, what is left out."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import load_probe, train
from qprobe.data.dataset import GREEDY, Dataset, Reading, Sample
from qprobe.data.merging import drop_few, merge_datasets
from qprobe.data.writer import DatasetWriter, lock_folder
from qprobe.errors import DatasetError, EvaluationError
from qprobe.evaluation.summary import summarise
from qprobe_server import cli

N, HIDDEN = 4, 3
READING = Reading(3, "mean")
MANIFEST: dict[str, Any] = {
    "model": "org/model",
    "hidden_size": HIDDEN,
    "num_layers": 6,
    "readings": ["3/mean", "3/last"],
    "sampling": {"seed": 0},
    "reward": "numeric",
    "prompts_per_shard": 4,
}
REWARD = (
    "def longer(row, completion):\n"
    "    if row['bad']: raise ValueError('bad row')\n"
    "    return float(completion.count('x') > 2)\n"
)


def write(
    folder: Path, *, first: int = 0, bad: int = -1, split: str | None = None, **manifest: Any
) -> Path:
    """Write a dataset: a text has as many x as the first feature says, from 0 to 5.

    The collected reward is that of an even number of them, which no linear probe can tell.
    """
    rng = np.random.default_rng(first + 1)
    rows = [{"prompt": f"p{first + i}", "bad": i == bad} for i in range(12)]
    if split is not None:
        rows = [{**row, "split": split} for row in rows]
    made = {**MANIFEST, "num_prompts": 12, **manifest}
    with DatasetWriter(folder, made, rows) as writer:
        for shard in writer.missing():
            samples, features = [], []
            for prompt in writer.prompts_of(shard):
                for index in (GREEDY, *range(N)):
                    # Both sides of every prompt are there, and both parities.
                    count = int(rng.integers(0, 3)) + 3 * (index % 2)
                    samples.append(make_sample(prompt, index, count))
                    if index != GREEDY:
                        features.append([count, *rng.normal(size=HIDDEN - 1)])
            values = torch.tensor(features).half()
            writer.write(shard, samples, {"3/mean": values, "3/last": -values})
        writer.finish()
    return folder


def make_sample(prompt: int, index: int, count: int) -> Sample:
    return Sample(
        prompt=prompt,
        index=index,
        text="x" * count,
        token_ids=[1],
        num_scored=1,
        logprob=-1.0,
        finish_reason="length" if count == 5 else "stop",
        seed=index,
        reward=float(count % 2 == 0),
    )


@pytest.fixture
def reward(tmp_path: Path) -> Iterator[str]:
    """Return a reward of one's own; its module is forgotten afterwards."""
    file = tmp_path / "mine.py"
    file.write_text(REWARD)
    yield f"python:{file}:longer"
    sys.modules.pop("qprobe_reward_mine", None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["qprobe", *map(str, arguments)])
    cli.main()


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_dataset_rewarded_anew_and_two_merged_are_trained_on_and_read_back(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the new reward wants is learnt, which the one collected does not teach."""
    a, b = write(tmp_path / "a"), write(tmp_path / "b", first=100, sampling={"seed": 1})
    before = files_of(a)
    for each in (a, b):
        run(monkeypatch, "reward", each, "--reward", reward, "--name", "long")
    assert capsys.readouterr().out.endswith(f"qprobe sweep {b} --reward-name long -o runs/\n")
    after = files_of(a)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("rewards/long/") for name in after.keys() - before.keys())

    data = [Dataset.load(each, reward_name="long") for each in (a, b)]
    for dataset in data:
        assert dataset.rewards.tolist() == [len(each.text) > 2 for each in dataset.samples]
        assert dataset.manifest["reward"] == reward
    assert (data[0].greedy_rewards == 1).all()
    collected = Dataset.load(a)
    assert collected.rewards.tolist() != data[0].rewards.tolist()
    assert collected.digest != data[0].digest

    out = tmp_path / "p.safetensors"
    flags = ("--reward-name", "long", "--layer", 3, "--folds", 2)
    run(monkeypatch, "train", a, b, *flags, "-o", out)
    info = load_probe(out).info
    assert info.training["train_prompts"] == 18
    assert info.training["reward"] == reward
    assert info.training["cross_validated_reward"] > 0.95
    report = tmp_path / "r"
    run(monkeypatch, "eval", out, a, b, "--reward-name", "long", "-o", report)
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["num_prompts"] == 6
    assert metrics["policy"]["reward"] > 0.95
    run(monkeypatch, "sweep", a, b, "--reward-name", "long", "--folds", 2, "-o", tmp_path / "s")
    assert json.loads((tmp_path / "s" / "metrics.json").read_text())["policy"]["reward"] > 0.95


def test_rewards_go_on_where_they_were_stopped(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill in the second of three shards: the same files, and nothing twice."""
    whole, broken = write(tmp_path / "whole"), write(tmp_path / "broken")
    run(monkeypatch, "reward", whole, "--reward", reward)
    assert "nothing done" not in capsys.readouterr().out
    run(monkeypatch, "reward", whole, "--reward", reward)
    said = "already rewarded, nothing done: 'longer' is there for all samples\n"
    assert capsys.readouterr().out.startswith(said)
    run(monkeypatch, "reward", broken, "--reward", reward)
    place = broken / "rewards" / "longer"
    (place / "complete.json").unlink()
    (place / "00001.jsonl").unlink()
    (place / ".part-00001").write_text('{"rew')
    kept = (place / "00002.jsonl").stat().st_mtime_ns
    with pytest.raises(DatasetError, match=r"'longer' is not in .*, which has none besides"):
        Dataset.load(broken, reward_name="longer")
    run(monkeypatch, "reward", broken, "--reward", reward)
    assert (place / "00002.jsonl").stat().st_mtime_ns == kept
    assert files_of(broken) == files_of(whole)


_INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from qprobe_server.cli import main; main()"
)


def test_an_interrupt_ends_a_reward_that_hangs_and_what_was_written_stays(tmp_path: Path) -> None:
    """In the second shard: the first is there, and the same command goes on."""
    data, hangs = write(tmp_path / "data"), tmp_path / "hangs"
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def f(row, completion):\n"
        f"    hangs = pathlib.Path({str(hangs)!r})\n"
        "    while row['prompt'] == 'p5' and not hangs.with_suffix('.no').exists():\n"
        "        hangs.touch()\n"
        "        time.sleep(0.1)\n"
        "    return 1.0\n"
    )
    flags = ["reward", str(data), "--reward", f"python:{tmp_path / 'slow.py'}:f"]
    command = [sys.executable, "-c", _INTERRUPTIBLE, *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not hangs.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    shards = data / "rewards" / "f"
    assert [path.name for path in shards.glob("*.jsonl")] == ["00000.jsonl"]
    hangs.with_suffix(".no").touch()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert (Dataset.load(data, reward_name="f").rewards == 1).all()


def test_a_row_that_raises_is_named_and_can_be_mended_or_skipped(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other", bad=5)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "reward", other, "--reward", reward, "--reward-workers", 1)
    assert "raised ValueError: bad row at" in str(stopped.value)
    assert f"mine.py:2 ({other}/prompts.jsonl:6, the greedy answer)" in str(stopped.value)
    run(monkeypatch, "reward", other, "--reward", reward, "--on-reward-error", "skip")
    out, err = capsys.readouterr()
    assert "11 prompts, 44 samples with a reward" in out
    assert "without  4" in out
    assert "which have none: 5;" in err
    dataset = Dataset.load(other, reward_name="longer")
    assert dataset.num_samples.tolist() == [4] * 5 + [0] + [4] * 6
    assert torch.equal(dataset.features(READING)[:, 0], counts_of(dataset))
    probe = tmp_path / "p.safetensors"
    run(monkeypatch, "train", other, "--reward-name", "longer", "--layer", 3, "-o", probe)
    said = f"1 of 12 prompts are left out, as they have fewer than 1 samples with a reward: {other}"
    assert said in capsys.readouterr().err
    with pytest.raises(EvaluationError, match=r"prompts\.jsonl:6 are none with a reward"):
        dataset.settle_k(None, default=4)


def counts_of(dataset: Dataset) -> torch.Tensor:
    return torch.tensor([float(len(each.text)) for each in dataset.samples])


def test_a_name_is_of_one_reward(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was mended is another reward, once something was rewarded with it."""
    data = write(tmp_path / "data")
    file = tmp_path / "mine.py"
    file.write_text("def longer(row, completion): return None\n")
    with pytest.raises(SystemExit, match="must return a finite number, got None"):
        run(monkeypatch, "reward", data, "--reward", reward)
    file.write_text(REWARD)
    run(monkeypatch, "reward", data, "--reward", reward)
    file.write_text(REWARD + "# mended\n")
    with pytest.raises(SystemExit, match=r"'longer' is that of reward .* choose another name, or"):
        run(monkeypatch, "reward", data, "--reward", reward)
    run(monkeypatch, "reward", data, "--reward", reward, "--name", "mended")
    with pytest.raises(DatasetError, match=r"'none' is not in .*, which has longer, mended"):
        Dataset.load(data, reward_name="none")
    for name in ("", "a/b", "..", "a b", "x" * 65):
        with pytest.raises(SystemExit, match="name: must be letters"):
            run(monkeypatch, "reward", data, "--reward", reward, "--name", name or ".")


def test_rewards_that_were_changed_or_are_of_other_samples_are_refused(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = write(tmp_path / "data"), write(tmp_path / "other", first=50)
    run(monkeypatch, "reward", data, "--reward", reward)
    shutil.copytree(data / "rewards", other / "rewards")
    with pytest.raises(DatasetError, match="'longer' is of other samples"):
        Dataset.load(other, reward_name="longer")
    path = data / "rewards" / "longer" / "00001.jsonl"
    path.write_text(path.read_text().replace("1.0", "0.0"))
    with pytest.raises(DatasetError, match=r"00001\.jsonl' is missing or was changed"):
        Dataset.load(data, reward_name="longer")
    (path.parent / "complete.json").write_text("{")
    with pytest.raises(DatasetError, match=r"complete\.json' is not JSON"):
        Dataset.load(data, reward_name="longer")


def test_rows_that_lack_what_the_reward_needs_and_other_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "data")
    with pytest.raises(SystemExit, match=r"prompts\.jsonl:1: answer: must be a finite number"):
        run(monkeypatch, "reward", data, "--reward", "numeric")
    assert not (data / "rewards").exists()
    with pytest.raises(SystemExit, match="is a file, a dataset's folder is wanted"):
        run(monkeypatch, "reward", data / "manifest.json", "--reward", "numeric")
    with lock_folder(data), pytest.raises(SystemExit, match="written by another process"):
        run(monkeypatch, "reward", data, "--reward", "python:os:getenv", "--name", "x")


def test_merged_datasets_are_one_after_the_other(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", first=100, sampling={"seed": 1})
    one, two = Dataset.load(a), Dataset.load(b)
    merged = merge_datasets([one, two.subset([3, 1])], ["a", "b"])
    assert [row["prompt"] for row in merged.prompts[11:]] == ["p11", "p103", "p101"]
    assert merged.groups.tolist() == sorted(merged.groups.tolist())
    assert merged.num_samples.tolist() == [N] * 14
    assert torch.equal(merged.features(READING)[:, 0], counts_of(merged))
    assert torch.equal(merged.subset([13]).features(READING), two.subset([1]).features(READING))
    assert len(merged.greedy_rewards) == 14
    assert merged.places[12:] == [f"{b}/prompts.jsonl:4", f"{b}/prompts.jsonl:2"]
    assert merged.manifest["model"] == "org/model"
    assert merged.manifest["sampling"] == [{"seed": 0}, {"seed": 1}]
    assert merged.manifest["num_prompts"] == 14
    assert merge_datasets([one], ["a"]) is one


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model", "org/other", "model: is 'org/model' in .*a' and 'org/other' in .*b'"),
        ("model", "other/model", "model: is 'org/model' in .*a' and 'other/model' in .*b'"),
        ("revision", "abc", "revision: is None in .*a' and 'abc' in .*b'"),
        ("hidden_size", 5, "hidden_size: is 3 in .*a' and 5 in .*b'"),
        ("num_layers", 7, "num_layers: is 6"),
        ("adapter", {"name": "mine"}, "adapter: is None in"),
        ("shots", {"name": "a.jsonl"}, "shots: is None in"),
        ("readings", ["3/mean"], "readings: 3/last are in .*a' and not in .*b'"),
        ("readings", ["3/mean", "3/last", "4/last"], "readings: 4/last are in .*b' and not in"),
    ],
)
def test_folders_that_do_not_agree_say_in_what(
    tmp_path: Path, field: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", first=100, **{field: value})
    with pytest.raises(SystemExit, match=said):
        run(monkeypatch, "train", a, b, "--layer", 3, "-o", tmp_path / "p.safetensors")


def test_a_folders_name_is_the_hubs_and_none_counts_twice(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", first=100, model="model")
    merge_datasets([Dataset.load(a), Dataset.load(b)], ["a", "b"])
    main = write(tmp_path / "main", first=50, revision="main")
    merge_datasets([Dataset.load(a), Dataset.load(main)], ["a", "main"])
    with pytest.raises(DatasetError, match="'a2' holds what 'a' does"):
        merge_datasets([Dataset.load(a), Dataset.load(a)], ["a", "a2"])


def test_an_error_of_a_row_names_it_in_its_file(
    tmp_path: Path,
) -> None:
    """Also in the second of two folders, of whose prompts some are left out."""
    a, b = write(tmp_path / "a", split="train"), write(tmp_path / "b", first=100, split="test")
    one, two = Dataset.load(a), Dataset.load(b)
    two.prompts[7]["split"] = "tset"
    merged = merge_datasets([one, two.subset([3, 7, 9])], ["a", "b"])
    with pytest.raises(EvaluationError, match=rf"split: of {b}/prompts\.jsonl:8 must be 'train'"):
        train(merged, READING)


def test_prompts_with_few_samples_are_left_out(tmp_path: Path) -> None:
    dataset = Dataset.load(write(tmp_path / "data"))
    dataset.samples = [each for each in dataset.samples if (each.prompt, each.index) != (2, 1)]
    fewer = Dataset(dataset.manifest, dataset.prompts, dataset.samples, {}, dataset.greedy_rewards)
    assert drop_few(fewer, 3) is fewer
    assert [row["prompt"] for row in drop_few(fewer, 4).prompts] == [
        f"p{i}" for i in range(12) if i != 2
    ]
    with pytest.raises(DatasetError, match="must be at most 4, the most samples of a prompt"):
        drop_few(fewer, 5)
    with pytest.raises(EvaluationError, match=r"from 1 to 3, .* \(row 3\), got 4"):
        fewer.settle_k(4, default=4)
    alone = [each for each in dataset.samples if each.prompt != 2 or each.index == 0]
    single = Dataset(dataset.manifest, dataset.prompts, alone, {}, dataset.greedy_rewards)
    with pytest.raises(EvaluationError, match="row 3 has one sample only"):
        single.settle_k(None, default=16)


def test_the_summary_of_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qprobe_server.commands.summary import print_summary

    samples = [
        replace(make_sample(prompt, index, count), reward=reward, reason=reason)
        for prompt, index, count, reward, reason in (
            (0, GREEDY, 0, 1.0, None),
            (0, 0, 5, 0.0, "failed"),
            (0, 1, 1, 1.0, None),
            (1, GREEDY, 1, None, "no reward"),
            (1, 0, 5, 0.0, "failed"),
            (1, 1, 1, 0.0, "syntax"),
            (2, 0, 1, None, "no reward"),
        )
    ]
    rows = [{"prompt": f"p{i}"} for i in range(3)]
    manifest = {**MANIFEST, "num_prompts": 3, "readings": ["3/mean"]}
    folder = tmp_path / "my data"
    with DatasetWriter(folder, manifest, rows) as writer:
        writer.write(0, samples, {"3/mean": torch.zeros(5, HIDDEN).half()})
        writer.finish()
    found = summarise(Dataset.load(folder))
    assert found is not None
    assert (found.num_prompts, found.num_samples, found.num_unrewarded) == (2, 4, 1)
    assert (found.base, found.greedy, found.ceiling) == (0.25, 1.0, 0.5)
    assert found.spread == pytest.approx((0.25 / 2) ** 0.5)
    assert (found.cut, found.num_differing) == (0.5, 1)
    assert found.reasons == {"failed": 2, "syntax": 1}
    print_summary(folder)
    out = capsys.readouterr().out
    assert out.splitlines()[1:4] == [
        "base     0.2500  one sample",
        "greedy   1.0000  the greedy answer",
        "ceiling  0.5000  the best of a prompt's samples",
    ]
    assert "differ   50%     of the prompts (1): only these teach a choice" in out
    assert "reasons  failed 2, syntax 1" in out
    assert out.endswith(f"next: qprobe sweep '{folder}' -o runs/\n")
