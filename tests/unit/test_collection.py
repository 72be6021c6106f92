"""A collection whose reward fails: what stays, how it goes on. The engine is a stand-in."""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qprobe.data.completions import GivenCompletion
from qprobe.data.dataset import GREEDY, Dataset, Reading
from qprobe.data.prompts import PromptRow
from qprobe.data.writer import DatasetWriter
from qprobe.errors import RewardError
from qprobe.rewards.rating import NO_REWARD
from qprobe_server.commands import arguments
from qprobe_server.commands.collect import check_token_states
from qprobe_server.commands.collection import collect_samples
from qprobe_server.commands.manifest import check_same, describe_flags
from qprobe_server.commands.rewarding import HowToReward, Rewarding
from qprobe_server.errors import StartupError

N, HIDDEN = 3, 2
ROWS = [PromptRow(prompt=f"p{i}", fields={"prompt": f"p{i}"}, line=i + 1) for i in range(4)]
MANIFEST: dict[str, Any] = {
    "readings": ["3/last", "3/mean"],
    "token_states": [3],
    "num_prompts": len(ROWS),
    "prompts_per_shard": 2,
}


class Engine:
    """Answers with the prompt's number and the seed; the last asked comes first."""

    layers: Sequence[int] = (3,)
    windows: Sequence[int] = ()
    token_layers: Sequence[int] = (3,)

    def sample(
        self, prompts: list[list[int]], params: object, *, seeds: list[int | None], on_step: object
    ) -> Iterator[Any]:
        for request in reversed(range(len(prompts))):
            seed, prompt = seeds[request], prompts[request][0]
            values = None if seed is None else torch.full((1, 2, HIDDEN), float(seed)).half()
            tokens = None if seed is None else torch.full((1, 1 + seed % 2, HIDDEN), seed).half()
            yield SimpleNamespace(
                request=request,
                text=f"{prompt} {seed}",
                token_ids=[1],
                num_scored=1 if seed is None else 1 + seed % 2,
                logprobs=[-1.00004],
                finish_reason="stop",
                embeddings=values,
                tokens=tokens,
            )


class Picky:
    """Rewards by length, but fails for some texts."""

    name = "picky"

    def __init__(self, *bad: str) -> None:
        self.bad = bad

    def check(self, fields: dict[str, Any]) -> None: ...

    def __call__(self, fields: dict[str, Any], completion: str) -> float:
        if completion in self.bad:
            raise RewardError("cannot")
        return float(len(completion))


def collect(folder: Path, reward: Picky, *, skip: bool = False) -> None:
    with (
        DatasetWriter(folder, MANIFEST, [row.fields for row in ROWS]) as writer,
        Rewarding(reward, HowToReward(2, skip=skip)) as rewarding,
    ):
        collect_samples(
            Engine(),  # type: ignore[arg-type]  # as much of one as is asked for
            writer,
            ROWS,
            [[i] for i in range(len(ROWS))],
            rewarding,
            params=None,
            n=N,
            seed=0,
            greedy=True,
            progress=lambda _: None,
        )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("2 20001", r"cannot \(prompt of line 3, sample 1\)"),
        ("3 None", r"cannot \(prompt of line 4, the greedy answer\)"),
    ],
)
def test_a_reward_that_fails_stops_and_skipping_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, said: str
) -> None:
    """What was written stays, and the other samples of the shard come out as ever."""
    with pytest.raises(RewardError, match=said):
        collect(tmp_path / "data", Picky(bad))
    assert (tmp_path / "data" / "samples" / "00000.jsonl").exists()
    assert not (tmp_path / "data" / "samples" / "00001.jsonl").exists()
    collect(tmp_path / "data", Picky(bad), skip=True)
    assert "which have none: 1;" in capsys.readouterr().err
    collect(tmp_path / "whole", Picky())
    skipped, whole = Dataset.load(tmp_path / "data"), Dataset.load(tmp_path / "whole")
    assert skipped.samples == [each for each in whole.samples if each.text != bad]
    assert {each.logprob for each in whole.samples} == {-1.00004}
    assert {each.sum_logprobs(1) for each in whole.samples} == {-1.00004}
    assert all(each.logprobs == [-1.0] for each in whole.samples)  # rounded
    features = skipped.features(Reading(3, "mean"))[:, 0]
    assert features.tolist() == [float(torch.tensor(each.seed).half()) for each in skipped.samples]
    for states, each in zip(skipped.token_states(3), skipped.samples, strict=True):
        assert torch.equal(states, torch.full((each.num_scored, HIDDEN), each.seed or 0).half())
    lines = (tmp_path / "data" / "samples" / "00001.jsonl").read_text().splitlines()
    assert [f'"text": "{bad}"' in line for line in lines] == [NO_REWARD in line for line in lines]
    assert len(lines) == 2 * (N + 1)
    assert sum(f'"index": {GREEDY}' in line for line in lines) == 2


@pytest.mark.parametrize(
    ("max_tokens", "completions", "size"),
    [
        (50, False, 2 * 16 * 50),
        (None, False, 16 * (90 + 80)),  # as many as fit into the context
        (85, False, 16 * (85 + 80)),
        (None, True, 5 + 1),  # the empty one by its prompt's last token
    ],
)
def test_states_of_tokens_have_a_limit(
    max_tokens: int | None, *, completions: bool, size: int
) -> None:
    """Two layers of 2^18 numbers of 2 bytes: 1,024 tokens a GiB."""
    engine: Any = SimpleNamespace(
        token_layers=(3, "final"),
        facts=SimpleNamespace(hidden_size=1 << 18),
        context=100,
        tokenizer=SimpleNamespace(completion=list),
    )
    row = replace(ROWS[0], completions=(GivenCompletion("hello", 1.0), GivenCompletion("", 0.0)))

    def check(limit: float) -> None:
        args = argparse.Namespace(n=None, completions=completions, token_states_limit=limit)
        check_token_states(args, engine, [row], [[1] * 10, [1] * 20], max_tokens)

    check(size / 1024)
    with pytest.raises(StartupError, match=r"--token-states may take .* than --token-states-limit"):
        check(size / 1024 - 0.001)
    engine.token_layers = ()
    check(0)


def test_other_states_of_tokens_are_another_collection(tmp_path: Path) -> None:
    """One without any, or begun before there were any, goes on without."""
    collect(tmp_path / "with", Picky())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    check_same(tmp_path / "with", {"token_states": [3]})
    check_same(tmp_path / "old", {"token_states": None})
    for name in ("with", "old"):
        with pytest.raises(
            StartupError, match=r"--token-states is \[3, 'final'\], but the dataset"
        ):
            check_same(tmp_path / name, {"token_states": [3, "final"]})


def test_a_model_that_was_tuned_is_another_though_its_files_look_alike(tmp_path: Path) -> None:
    """One matrix of 64 MiB of weights differs. Elsewhere, with other defaults, it is the same."""
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "a" / "model"
    prompts.write_text('{"prompt": "1 + 1 =", "answer": 2}\n')
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    weights = bytearray(64 << 20)
    (folder / "model.safetensors").write_bytes(weights)

    def describe(model: Path) -> dict[str, Any]:
        given = ["collect", prompts, "--reward", "numeric", "--model", model, "-o", tmp_path]
        return describe_flags(arguments.parse([*map(str, given)]), ROWS)

    begun = describe(folder)
    (tmp_path / "manifest.json").write_text(json.dumps(begun))
    moved = shutil.copytree(folder, tmp_path / "b" / "model")
    (moved / "generation_config.json").write_text('{"temperature": 0.1}')
    check_same(tmp_path, describe(moved))
    weights[40 << 20 : 41 << 20] = b"\1" * (1 << 20)
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(StartupError, match="--model or --reader: the files are not what they were"):
        check_same(tmp_path, describe(moved))
