"""``qprobe export``: a dataset as a Parquet table, and back."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from qprobe.data.dataset import GREEDY, Dataset, Reading, Sample
from qprobe.data.prompts import read_prompts
from qprobe.data.writer import DatasetWriter
from qprobe_server import cli

HIDDEN = 3
READINGS = ("3/mean", "final/last")
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]
ROWS: list[dict[str, Any]] = [
    {"prompt": "p", "answer": 5, "tests": ["assert 1"], "seed": "own", "split": "train"},
    {"messages": CHAT, "answer": "5", "deep": {}, "split": "test"},
    {"messages": PARTS, "split": "train", "deep": {"a": 1}},
    {"chosen": [*CHAT, {"role": "assistant", "content": "x"}], "split": "test",
     "rejected": [*CHAT, {"role": "assistant", "content": "y"}]},
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write a dataset of two samples and a greedy answer a prompt, in two shards."""
    manifest = {
        "hidden_size": HIDDEN,
        "readings": list(READINGS),
        "num_prompts": len(ROWS),
        "prompts_per_shard": 3,
        "reward": "tests",
    }
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, manifest, ROWS) as writer:
        for shard in writer.missing():
            samples = [
                Sample(
                    prompt=prompt,
                    index=index,
                    text=f"answer {prompt} {index}",
                    token_ids=[1, 2, 3][: index + 2],
                    num_scored=1,
                    logprob=-1.5,
                    finish_reason="stop",
                    seed=None if index == GREEDY else 10 * prompt + index,
                    reward=prompt + index / 2,
                )
                for prompt in writer.prompts_of(shard)
                for index in (GREEDY, 0, 1)
            ]
            count = sum(each.index != GREEDY for each in samples)
            states = torch.from_numpy(rng.normal(size=(count, HIDDEN))).half()
            writer.write(shard, samples, {name: states + i for i, name in enumerate(READINGS)})
        writer.finish()
    return folder


Export = Callable[..., Path]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, data: Path) -> Export:
    def run(*arguments: object) -> Path:
        path = data.with_name("out.parquet")
        argv = ["qprobe", "export", str(data), "-o", str(path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        cli.main()
        return path

    return run


def test_a_row_a_sample(data: Path, export: Export) -> None:
    rows = pq.read_table(export()).to_pylist()
    samples = Dataset.load(data).samples
    assert [(row["prompt_index"], row["sample_index"]) for row in rows] == [
        (each.prompt, each.index) for each in samples
    ]
    for row, each in zip(rows, samples, strict=True):
        assert row["completion"] == each.text
        assert row["reward"] == each.reward
        assert row["token_ids"] == each.token_ids
        assert row["num_tokens"] == len(each.token_ids)
        assert (row["logprob"], row["seed"]) == (each.logprob, each.seed)
        assert row["split"] == ROWS[each.prompt]["split"]
    assert (rows[0]["prompt"], rows[0]["messages"]) == ("p", None)
    assert (rows[0]["row_seed"], rows[0]["tests"]) == ("own", ["assert 1"])
    assert [rows[2 * i]["messages"] for i in (1, 2, 3)] == [
        CHAT,
        [{"role": "user", "content": "a\nb"}],
        CHAT,
    ]
    # No single type holds these: their JSON.
    assert [json.loads(rows[i]["answer"]) for i in (0, 2)] == [5, "5"]
    assert not any(name.startswith("embedding") for name in rows[0])


def test_embeddings_are_written_if_asked_for(data: Path, export: Export) -> None:
    table = pq.read_table(export("--embeddings", "final/last,3/mean"))
    dataset = Dataset.load(data)
    for name in READINGS:
        column = np.array(table[f"embedding/{name}"].to_pylist(), np.float32)
        assert column.shape == (len(dataset.samples), HIDDEN)
        assert (column == dataset.features(Reading.parse(name)).numpy()).all()


def test_what_was_exported_is_read_back(data: Path, export: Export) -> None:
    read = read_prompts(export(), needs_completions=True, needs_rewards=True)
    samples = Dataset.load(data).samples
    texts = [(each.text, each.reward) for row in read for each in row.completions]
    # Two of the rows ask the same, which are one now.
    assert len(read) == 3
    assert sorted(texts) == sorted((each.text, each.reward) for each in samples)
    assert [each.prompt for each in read][:2] == ["p", CHAT]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "out.csv"), "--output must be a file that ends in .parquet, got out.csv"),
        (("--embeddings", "4/mean"), "reading: '4/mean' is not in the dataset, which has 3/mean"),
        (("-o", "nowhere/out.parquet"), "--output 'nowhere/out.parquet' must be a file in a"),
    ],
)
def test_what_cannot_be_exported(data: Path, export: Export, arguments: Any, said: str) -> None:
    with pytest.raises(SystemExit, match=f"^qprobe: {said}"):
        export(*arguments)
    assert [path.name for path in data.parent.iterdir()] == ["data"]
