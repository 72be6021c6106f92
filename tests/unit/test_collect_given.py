"""Datasets of completions that the rows bring, read by an embeddings endpoint: a real server."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qprobe import Reading, evaluate
from qprobe.data.dataset import Dataset
from qprobe.data.export import export_table
from qprobe.errors import DatasetError, RewardError
from qprobe.probe.values import NUMBERS
from qprobe.training.design import settle_numbers
from qprobe.training.recipe import train
from qprobe_server.commands import arguments, collect, collect_api
from qprobe_server.errors import StartupError
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint

Json = dict[str, Any]
WORDS = ("red", "green", "blue", "grey")
NUM_PROMPTS = 24


def embed(text: str) -> list[float]:
    """Count some letters: no two of the answers have the same."""
    return [3.0 * text.count(letter) for letter in "rgbuy"] + [1.0]


def play(request: Json, _: int) -> Json:
    data = [{"index": i, "embedding": embed(text)} for i, text in enumerate(request["input"])]
    return {"data": data, "model": request["model"]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Return a file of prompts with completions; the reward of the first of each is known."""
    path = tmp_path / "rows.jsonl"
    given = [{"text": WORDS[0], "reward": 0.25}, *WORDS[1:]]
    made = [
        {
            "messages": [{"role": "user", "content": f"Colour {i}?"}],
            "answer": "gr",
            "completions": given,
        }
        for i in range(NUM_PROMPTS)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in made))
    (tmp_path / "reward.py").write_text(
        "def begins(row, completion):\n    return float(completion.startswith(row['answer']))\n"
        "def picky(row, completion):\n    return 1 / (completion != 'blue')\n"
    )
    return path


@pytest.fixture
def run(rows: Path) -> Callable[..., Path]:
    """Return a function that collects; more flags may be given."""

    def collect_from(played: Any, *flags: str, reward: str = "begins") -> Path:
        output = rows.parent / "data"
        argv = ["collect", str(rows), "--completions", "-o", str(output)]
        argv += ["--embeddings", played.url, "--embedding-model", "e5"]
        argv += ["--reward", f"python:{rows.parent / 'reward.py'}:{reward}"]
        collect.run(arguments.parse([*argv, "--prompts-per-shard", "8", *flags]))
        return output

    return collect_from


def test_completions_are_read_and_rewarded_and_what_nobody_tells_is_unknown(
    playing: Any, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    played = playing(play)
    data = Dataset.load(run(played))
    assert [each.text for each in data.samples] == list(WORDS) * NUM_PROMPTS
    assert data.rewards.tolist() == [0.25, 1, 0, 1] * NUM_PROMPTS
    for each in data.samples:
        assert (each.logprob, each.logprobs, each.seed) == (None, None, None)
        assert (each.token_ids, each.finish_reason) == ([], "given")
    for name in NUMBERS:
        with pytest.raises(DatasetError, match="numbers: are not known"):
            data.numbers([name])
    assert np.isnan(data.greedy_rewards).all()
    features = data.features(Reading.parse("embedding")).numpy()
    texts = [f"user: Colour {each.prompt}?\n\nassistant: {each.text}" for each in data.samples]
    vectors = np.array([embed(text) for text in texts])
    np.testing.assert_allclose(
        features, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-3
    )
    # One to see what the endpoint gives, and then a call a prompt.
    assert sorted(len(each["input"]) for each in played.requests) == [1] + [4] * NUM_PROMPTS
    said = capsys.readouterr()
    assert "cut" not in said.out
    assert f"{4 * NUM_PROMPTS}/{4 * NUM_PROMPTS}" in said.err


def test_an_endpoint_may_take_minutes(
    playing: Any, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is 200 times as fast, on which a batch takes two minutes."""

    class Hurried(EmbeddingsEndpoint):
        def __init__(self, *given: Any, total_s: float = 60.0, **named: Any) -> None:
            super().__init__(*given, total_s=total_s / 200, **named)

    def play_slowly(request: Json, number: int) -> Json:
        if "Colour 3?" in request["input"][0]:
            time.sleep(0.6)
        return play(request, number)

    monkeypatch.setattr(collect_api, "EmbeddingsEndpoint", Hurried)
    assert len(Dataset.load(run(playing(play_slowly))).samples) == len(WORDS) * NUM_PROMPTS


def test_the_manifest_says_what_has_read_and_that_nothing_was_sampled(
    playing: Any, run: Callable[..., Path]
) -> None:
    played = playing(play)
    output = run(played, "--embedding-template", "passage: {completion}")
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["endpoint"] == {"template": "passage: {completion}", "normalize": True}
    assert (manifest["embeddings"], manifest["model"]) == (played.url, "e5")
    assert (manifest["hidden_size"], manifest["num_layers"]) == (6, 1)
    assert manifest["readings"] == ["embedding"]
    assert manifest["sampling"] is None
    assert "upstream" not in manifest


def test_a_probe_of_it_is_trained_and_measured(playing: Any, run: Callable[..., Path]) -> None:
    data = Dataset.load(run(playing(play)))
    assert settle_numbers(data, None) == ()
    probe = train(data, Reading.parse("embedding"))
    assert probe.info.endpoint is not None
    assert (probe.info.base_model, probe.info.endpoint.normalize) == ("e5", True)
    measured = evaluate(probe, data, curve=False)
    assert measured["policy"]["reward"] > measured["base"]["reward"]
    assert measured["baselines"] == {}


def test_a_table_of_it_says_null_where_nobody_tells(
    playing: Any, run: Callable[..., Path], tmp_path: Path
) -> None:
    export_table(Dataset.load(run(playing(play))), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pydict()
    for name in ("num_tokens", "token_ids", "logprob", "seed"):
        assert set(table[name]) == {None}


def test_rewards_that_the_rows_bring_need_no_other(playing: Any, rows: Path) -> None:
    rows.write_text(
        json.dumps({"prompt": "Colour?", "chosen": " green", "rejected": " red"}) + "\n"
    )
    argv = ["collect", str(rows), "--completions", "-o", str(rows.parent / "data")]
    argv += ["--embeddings", playing(play).url, "--embedding-model", "e5"]
    with pytest.raises(StartupError, match="--reward-workers goes with --reward"):
        collect.run(arguments.parse([*argv, "--reward-workers", "2"]))
    collect.run(arguments.parse(argv))
    assert Dataset.load(rows.parent / "data").rewards.tolist() == [1, 0]


def test_one_that_was_stopped_goes_on_and_asks_nothing_twice(
    playing: Any, run: Callable[..., Path]
) -> None:
    """The endpoint refuses a completion of the second shard of three; what is there stays."""

    def fail(request: Json, number: int) -> Any:
        is_bad = any("Colour 9" in text and "blue" in text for text in request["input"])
        return (400, {}, {"error": "my secret"}) if is_bad else play(request, number)

    played = playing(fail)
    with pytest.raises(StartupError, match="not take an answer to the prompt of line 10") as caught:
        run(played)
    assert str(caught.value).startswith("--embeddings: ")
    played.play = play
    before = len(played.requests)
    assert len(Dataset.load(run(played)).samples) == 4 * NUM_PROMPTS
    assert len(played.requests) - before == 1 + 16  # two shards, and what the endpoint gives


def test_a_completion_that_is_too_long_leaves_its_prompt_out_where_that_is_asked_for(
    playing: Any, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it alone, the others of its prompt would say that short ones are better."""

    def limit(request: Json, number: int) -> Any:
        is_long = any("Colour 9" in text and "blue" in text for text in request["input"])
        return (400, {}, {}) if is_long else play(request, number)

    data = Dataset.load(run(playing(limit), "--on-refusal", "skip"))
    assert data.num_samples.tolist() == [4] * 9 + [0] + [4] * 14
    assert data.num_refused == 1
    assert "an answer cannot be read: 1; the first: --embeddings: " in capsys.readouterr().err


def test_a_reward_that_fails_stops_and_skipping_goes_on(
    playing: Any, run: Callable[..., Path]
) -> None:
    played = playing(play)
    with pytest.raises(RewardError, match=r"\(prompt of line 1, sample 2\)"):
        run(played, reward="picky")
    data = Dataset.load(run(played, "--on-reward-error", "skip", reward="picky"))
    assert data.num_unrewarded == NUM_PROMPTS
    assert {each.text for each in data.samples} == {"red", "green", "grey"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--embedding-template", "x{completion}"), "--embedding-template is"),
        (("--embedding-model", "other"), "--embedding-model is 'other'"),
    ],
)
def test_a_flag_that_differs_from_those_it_was_begun_with_is_named(
    playing: Any, run: Callable[..., Path], flags: tuple[str, ...], says: str
) -> None:
    played = playing(play)
    run(played)
    with pytest.raises(StartupError, match=says):
        run(played, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--upstream-model", "m"), "--upstream-model goes with --upstream"),
        (("--upstream-concurrency", "2"), "--upstream-concurrency goes with --upstream"),
        (("--reader", "r"), "--reader goes with --upstream"),
        (("--model", "m"), "--model goes with a model here, not with --embeddings"),
        (("--adapter", "a"), "--adapter goes with a model here"),
        (("--layers", "3"), "--layers goes with a model here"),
        (("--windows", "8"), "--windows goes with a model here"),
        (("--token-states", "3"), "--token-states goes with a model here"),
        (("--dtype", "float32"), "--dtype goes with a model here"),
        (("--seed", "0"), "--seed goes with sampling or --shots"),
        (("--n", "4"), "--n goes with sampling"),
        (("--max-tokens", "4"), "--max-tokens goes with sampling"),
        (("--no-greedy",), "--no-greedy goes with sampling"),
        (("--embedding-template", "{prompt}"), "must have {completion}"),
    ],
)
def test_flags_without_effect_are_refused(
    playing: Any, run: Callable[..., Path], flags: tuple[str, ...], says: str
) -> None:
    played = playing(play)
    with pytest.raises(StartupError) as caught:
        run(played, *flags)
    assert says in str(caught.value)
    assert played.requests == []


def test_the_endpoints_model_must_be_named(rows: Path) -> None:
    argv = ["collect", str(rows), "--completions", "-o", str(rows.parent / "data")]
    with pytest.raises(StartupError, match="needs the model's name: --embedding-model"):
        collect.run(arguments.parse([*argv, "--embeddings", "http://x/v1"]))
