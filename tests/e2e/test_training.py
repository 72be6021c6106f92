"""Collecting, training and evaluating by the commands, and that a server agrees with them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qprobe import load_probe
from qprobe.data.dataset import Dataset, Sample
from qprobe.evaluation.scoring import score
from qprobe.probe.values import Source
from qprobe_server.default_model import SERVED_NAME

QPROBE = str(Path(sys.executable).with_name("qprobe"))
ReadMerged = Callable[[Path | None], Any]
SEED_STRIDE = 10_000
N = 4
ENVIRONMENT = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
ENGINE = ("--dtype", "float32", "--enforce-eager", "--block-size", "32")
QUESTIONS = (
    "Write a Python function `add(a, b)` that returns a + b.",
    "What is a volcano?",
    "Name three colours.",
    "Is fire hot? Answer with one word.",
    "Say hello.",
    "Write a Python function `size(s)` that returns len(s).",
)
REWARD = """
def score(fields, completion):
    return min(1.0, len(completion) / fields["long"])
"""


@dataclass(frozen=True)
class Job:
    """What is collected: prompts and, beside them, a reward of one's own; and the model."""

    prompts: Path
    model: Path

    def arguments(self, folder: Path) -> list[str]:
        reward = self.prompts.with_name("reward.py")
        return [
            *("collect", str(self.prompts), "--model", str(self.model), "--n", str(N)),
            *("--seed", "7", "--reward", f"python:{reward}:score"),
            *("--layers", "2,4,final", "--windows", "8", "--max-tokens", "64"),
            *("--token-states", "2,final"),
            *("--max-model-len", "512", "--prompts-per-shard", "2", "-o", str(folder)),
            *ENGINE,
        ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Job:
    """Write the prompts and the reward."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": question}], "long": 200} for question in QUESTIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.with_name("reward.py").write_text(REWARD)
    return Job(path, small_model)


@pytest.fixture(scope="module")
def collected(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect without interruption."""
    folder = tmp_path_factory.mktemp("collected") / "data"
    shown = run(*job.arguments(folder))
    assert (
        shown.splitlines()[0]
        == f"{len(QUESTIONS)} prompts, {len(QUESTIONS) * N} samples with a reward"
    )
    assert shown.splitlines()[-1] == f"next: qprobe sweep {folder} -o runs/"
    return folder


def kill_when_there(job: Job, folder: Path, name: str) -> None:
    """Collect, and kill all of it as soon as a file is there."""
    process = subprocess.Popen(
        [QPROBE, *job.arguments(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 300
    while not (folder / name).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_collection_ends_as_one_that_ran_through(
    job: Job, collected: Path, tmp_path: Path
) -> None:
    """Killed before its first shard, after one, and within the second: the same files, bit by bit.

    The embeddings of a shard are written before its samples, which make it count.
    """
    folder = tmp_path / "data"
    for name in ("manifest.json", "samples/00000.jsonl", "embeddings/00001/final-mean.safetensors"):
        kill_when_there(job, folder, name)
    run(*job.arguments(folder))
    names = sorted(str(path.relative_to(collected)) for path in collected.rglob("*.*"))
    assert names == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    for name in names:
        assert (collected / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_folder_holds_what_was_asked_for(collected: Path) -> None:
    dataset = Dataset.load(collected)
    assert len(dataset.samples) == len(QUESTIONS) * N
    asked = [row["messages"][0]["content"] for row in dataset.prompts]
    assert asked == list(QUESTIONS)
    assert [each.seed for each in dataset.samples] == [
        7 + prompt * SEED_STRIDE + index for prompt in range(len(QUESTIONS)) for index in range(N)
    ]
    assert dataset.rewards.tolist() == [min(1, len(each.text) / 200) for each in dataset.samples]
    assert (dataset.greedy_rewards > 0).all()
    assert all(len(each.token_ids) <= 64 for each in dataset.samples)
    assert all((each.logprob or 0) < 0 for each in dataset.samples)
    for each in dataset.samples:
        assert len(each.logprobs or []) == len(each.token_ids)
        assert sum(each.logprobs or []) == pytest.approx(each.logprob, abs=1e-2)
    readings = ["last", "mean", "mean/8"]
    assert [str(reading) for reading in dataset.readings] == [
        f"{layer}/{reading}" for layer in ("2", "4", "final") for reading in readings
    ]
    for reading in dataset.readings:
        assert dataset.features(reading).shape == (len(QUESTIONS) * N, 576)


@pytest.mark.parametrize("name", ["end", "early"])
def test_the_server_agrees_with_the_dataset(
    server: Any, make_probe: Any, collected: Path, name: str
) -> None:
    """Asked with the dataset's seeds, a server samples the same texts and gives the same scores.

    The batches differ, and with them the rounding. A text may part ways at a token that was nearly
    a draw between two, so only half of them must agree; with other seeds none would. In bf16 an
    embedding is off by up to 1 % of its norm, and candidates differ by 10 % and more of it: hence a
    fifth of the scores' spread.
    """
    dataset = Dataset.load(collected)
    probe = load_probe(find_probe(make_probe, name))
    expected = score(probe.terms, dataset).reshape(-1, N)
    errors = []
    for prompt, row in enumerate(dataset.prompts):
        body = {
            "model": f"{SERVED_NAME}:{name}",
            "messages": row["messages"],
            "seed": 7 + prompt * SEED_STRIDE,
            "max_tokens": 64,
            "q_probe": {"k": N, "beta": 0.1, "return_candidates": True},
        }
        reply = server.client().post("/v1/chat/completions", json=body).raise_for_status().json()
        (result,) = reply["q_probe"]["results"]
        texts = [each.text for each in dataset.samples if each.prompt == prompt]
        errors += [
            score - float(right)
            for score, right, candidate, text in zip(
                result["scores"], expected[prompt], result["candidates"], texts, strict=True
            )
            if candidate["text"] == text
        ]
    assert len(errors) >= len(dataset.samples) / 2
    spread = float(expected.var(axis=1, ddof=1).mean()) ** 0.5
    assert sum(error**2 for error in errors) / len(errors) < (spread / 5) ** 2


def find_probe(make_probe: Any, name: str) -> Path:
    """Return the file that the server fixture has loaded under a name: made the same way."""
    fields: dict[str, dict[str, Any]] = {
        "end": {"layer": "final", "pooling": "last"},
        "early": {"layer": 2, "window": 8},
    }
    made: Path = make_probe(name, **fields[name])
    return made


class Reference:
    """Plain transformers: states and log-probabilities of a dataset's completions."""

    def __init__(self, folder: Path, model: Any) -> None:
        from transformers import AutoTokenizer

        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def read(
        self, row: dict[str, Any], sample: Sample, layers: set[Source]
    ) -> tuple[dict[Source, Tensor], float]:
        """Return the states of the tokens that count, and the log-probability of all tokens."""
        text = self._tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        found = self._model(torch.tensor([prompt + sample.token_ids]), output_hidden_states=True)
        first, end = len(prompt), len(prompt) + sample.num_scored
        states = {
            layer: found.hidden_states[-1 if layer == "final" else layer][0, first:end]
            for layer in layers
        }
        logprobs = found.logits[0, first - 1 : -1].log_softmax(-1)
        return states, float(logprobs[range(len(sample.token_ids)), sample.token_ids].sum())


def check_embeddings(
    dataset: Dataset, reference: Reference, *, before: Sequence[dict[str, str]] = ()
) -> None:
    """The relative error is that of float16, which embeddings are stored in: 2^-11 a number.

    ``before`` is what the model has read before the messages of each prompt.
    """
    asked = [{"messages": [*before, *row["messages"]]} for row in dataset.prompts]
    layers = {each.layer for each in dataset.readings}
    read = [reference.read(asked[each.prompt], each, layers) for each in dataset.samples]

    def compare(found: Tensor, right: Tensor) -> None:
        error = (found - right).norm(dim=1) / right.norm(dim=1)
        assert float(error.max()) < 2**-11

    for reading in dataset.readings:
        kept = [states[reading.layer][: reading.window] for states, _ in read]
        is_last = reading.pooling == "last"
        right = torch.stack([each[-1] if is_last else each.mean(0) for each in kept])
        compare(dataset.features(reading), right)
    assert dataset.token_layers
    for layer in dataset.token_layers:
        found = torch.cat(list(dataset.token_states(layer)))
        compare(found, torch.cat([states[layer] for states, _ in read]))
    for each, (_, logprob) in zip(dataset.samples, read, strict=True):
        assert each.logprob == pytest.approx(logprob, abs=1e-2)


def test_sampled_and_given_completions_are_embedded_as_transformers_does(
    job: Job, collected: Path, tmp_path: Path, read_merged: ReadMerged
) -> None:
    """The same texts sampled and, perhaps as other tokens, read."""
    sampled = Dataset.load(collected)
    rows = [
        {
            "messages": row["messages"],
            "completions": [
                {"text": each.text, "reward": each.reward}
                for each in sampled.samples
                if each.prompt == prompt
            ],
        }
        for prompt, row in enumerate(sampled.prompts)
    ]
    path, folder = tmp_path / "given.jsonl", tmp_path / "data"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        *("collect", str(path), "--completions", "--layers", "2,4,final", "--windows", "8"),
        *("--token-states", "4"),
        *("--model", str(job.model), "--max-model-len", "512", "-o", str(folder), *ENGINE),
    )
    given = Dataset.load(folder)
    assert given.rewards.tolist() == sampled.rewards.tolist()
    assert [each.text for each in given.samples] == [each.text for each in sampled.samples]
    # The model reads all of a given text, and of a sampled one all but the last token.
    assert all(each.num_scored == len(each.token_ids) for each in given.samples)
    assert all(each.num_scored == len(each.token_ids) - 1 for each in sampled.samples)
    reference = Reference(job.model, read_merged(None))
    check_embeddings(sampled, reference)
    check_embeddings(given, reference)


def test_sampling_with_an_adapter(
    job: Job,
    collected: Path,
    make_adapter: Callable[[str, int], Path],
    read_merged: ReadMerged,
    tmp_path: Path,
) -> None:
    """A LoRA adapter of random weights: its own texts and states, and the manifest says so."""
    adapter = make_adapter("adapter", 0)
    folder = tmp_path / "data"
    run(*job.arguments(folder), "--limit", "2", "--adapter", str(adapter))
    adapted, bare = Dataset.load(folder), Dataset.load(collected)
    assert adapted.manifest["adapter"]["name"] == "adapter"
    pairs = list(zip(adapted.samples, bare.samples, strict=False))
    assert len(pairs) == 2 * N
    assert all(mine.text != other.text for mine, other in pairs)
    assert [mine.seed for mine, _ in pairs] == [other.seed for _, other in pairs]
    check_embeddings(adapted, Reference(job.model, read_merged(adapter)))


def test_shots_stand_before_every_prompt(job: Job, read_merged: ReadMerged, tmp_path: Path) -> None:
    """The states are those of a chat with the shots in it; the rows stay what they are."""
    shots = tmp_path / "shots.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}]} for i in range(3)]
    said = [row | {"completion": f"It is {i}."} for i, row in enumerate(rows)]
    shots.write_text("".join(json.dumps(each) + "\n" for each in said))
    folder = tmp_path / "data"
    command = [*job.arguments(folder), "--limit", "3", "--shots", str(shots), "--num-shots", "2"]
    run(*command)
    made = Dataset.load(folder)
    assert [row["messages"] for row in made.prompts] == [
        [{"role": "user", "content": each}] for each in QUESTIONS[:3]
    ]
    before = []
    for line in made.manifest["shots"]["lines"]:
        answer = {"role": "assistant", "content": f"It is {line - 1}."}
        before += [*rows[line - 1]["prompt"], answer]
    assert len(before) == 4
    check_embeddings(made, Reference(job.model, read_merged(None)), before=before)
    run(*command)  # goes on where nothing is missing


def test_train_sweep_and_eval(collected: Path, tmp_path: Path) -> None:
    """The commands of the README on a dataset that is far too small to mean anything."""
    small = ["--k", "4", "--folds", "2", "--test-fraction", "0.34"]
    probe, report = tmp_path / "p.safetensors", tmp_path / "report"
    run("train", str(collected), "--layer", "4", "--objective", "mse", *small, "-o", str(probe))
    shown = run("eval", str(probe), str(collected), "-o", str(report), "--no-learning-curve")
    assert "prompts, not trained on, k=4" in shown
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["num_prompts"] == 2
    assert 0 <= metrics["base"]["reward"] <= metrics["ceiling"]["reward"] <= 1
    assert {row["k"] for row in metrics["resampled"]} >= {1, 2, 4}
    assert "<html" in (report / "report.html").read_text()
    swept = tmp_path / "swept"
    shown = run(
        *("sweep", str(collected), "--readings", "4/mean,final/last", "--objectives", "mse"),
        *(*small, "-o", str(swept)),
    )
    assert "4/mean" in shown
    assert load_probe(swept / "probe.safetensors").info.objective == "mse"


def test_training_on_all_prompts_leaves_none_to_evaluate(collected: Path, tmp_path: Path) -> None:
    probe = tmp_path / "p.safetensors"
    flags = ["--layer", "4", "--objective", "mse", "--k", "4", "--folds", "2"]
    run("train", str(collected), *flags, "--test-fraction", "0", "-o", str(probe))
    done = subprocess.run(
        [QPROBE, "eval", str(probe), str(collected), "-o", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("qprobe: folder: is what the probe was trained on")
    assert not (tmp_path / "r").exists()


def test_bad_rows_stop_a_collection_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "tests": ["assert True"]}\n{"prompt": "b"}\n')
    done = subprocess.run(
        [QPROBE, "collect", str(path), "--reward", "tests", "-o", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "prompts.jsonl" in last
    assert "2" in last
    assert "tests" in last
    assert not (tmp_path / "data").exists()


def test_prompts_beyond_the_context_stop_a_collection_before_it_samples(
    job: Job, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    long = "word " * 200
    path.write_text(f'{{"prompt": "a", "answer": 1}}\n{{"prompt": "{long}", "answer": 1}}\n')
    done = subprocess.run(
        [
            *(QPROBE, "collect", str(path), "--reward", "numeric", "-o", str(tmp_path / "data")),
            *("--model", str(job.model), "--max-model-len", "128", *ENGINE),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    *_, refused = [line for line in done.stderr.splitlines() if line.startswith("qprobe: ")]
    assert f"{path}:2: prompt: " in refused
    assert "128" in refused
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--completions", "--reward", "numeric", "--n", "4"], "--n goes with sampling"),
        (["--completions"], "rows.jsonl:1: completions[0].reward: is missing"),
        ([], "--reward is missing"),
        (["--reward", "numeric", "--n", "10001"], "--n must be at most 10000"),
    ],
)
def test_bad_flags_stop_a_collection_before_a_model_is_loaded(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1 + 1 =", "answer": 2, "completions": ["2"]}\n')
    done = subprocess.run(
        [QPROBE, "collect", str(path), *flags, "-o", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_states_of_tokens_are_of_layers_that_are_kept(job: Job, tmp_path: Path) -> None:
    """Told by the model's configuration, before its weights are loaded."""
    command = [QPROBE, *job.arguments(tmp_path / "data"), "--token-states", "2,3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 1
    said = "--token-states: must be among the layers of --layers (2, 4, final), got 3"
    assert said in done.stderr.splitlines()[-1]
    assert "loading" not in done.stderr
    assert not (tmp_path / "data").exists()


def run(*arguments: str) -> str:
    done = subprocess.run(
        [QPROBE, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
