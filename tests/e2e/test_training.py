"""Collecting, training and evaluating by the commands, and that a server agrees with them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qprobe import load_probe
from qprobe.data.dataset import Dataset, Reading
from qprobe_server.default_model import SERVED_NAME

QPROBE = str(Path(sys.executable).with_name("qprobe"))
SEED_STRIDE = 10_000
N = 4
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


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and, beside them, a reward of one's own."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": question}], "long": 200} for question in QUESTIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.with_name("reward.py").write_text(REWARD)
    return path


def command(prompts: Path, folder: Path) -> list[str]:
    return [
        *(QPROBE, "collect", str(prompts), "--n", str(N), "--seed", "7"),
        *("--reward", f"python:{prompts.with_name('reward.py')}:score"),
        *("--layers", "5,20,final", "--windows", "8", "--max-tokens", "64"),
        *("--max-model-len", "512", "--prompts-per-shard", "2", "-o", str(folder)),
    ]


@pytest.fixture(scope="module")
def collected(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect without interruption."""
    folder = tmp_path_factory.mktemp("collected") / "data"
    done = subprocess.run(
        command(prompts, folder), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_killed_collection_ends_as_one_that_ran_through(
    prompts: Path, collected: Path, tmp_path: Path
) -> None:
    """Killed five times, early, late and at random: every file is the same, bit by bit."""
    folder = tmp_path / "data"
    random_s = random.Random(0)
    for awaited in ("manifest.json", None, "samples/00000.jsonl", None, None):
        process = subprocess.Popen(
            command(prompts, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while awaited and not (folder / awaited).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if awaited is None:  # the engine starts within 20 to 40 s, then a shard takes some
            time.sleep(random_s.uniform(1, 45))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(prompts, folder), capture_output=True, timeout=400, check=True)
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
    assert all(each.logprob < 0 for each in dataset.samples)
    readings = ["last", "mean", "mean/8"]
    assert [str(reading) for reading in dataset.readings] == [
        f"{layer}/{reading}" for layer in ("5", "20", "final") for reading in readings
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
    reading = Reading(probe.info.layer, probe.info.pooling, probe.info.window)
    expected = probe.score(dataset.features(reading)).reshape(-1, N)
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
    spread = float(expected.var(dim=1).mean().sqrt())
    assert sum(error**2 for error in errors) / len(errors) < (spread / 5) ** 2


def find_probe(make_probe: Any, name: str) -> Path:
    """Return the file that the server fixture has loaded under a name: made the same way."""
    fields: dict[str, dict[str, Any]] = {
        "end": {"layer": "final", "pooling": "last"},
        "early": {"layer": 5, "window": 8},
    }
    made: Path = make_probe(name, **fields[name])
    return made


def test_given_completions_are_embedded_like_sampled_ones(collected: Path, tmp_path: Path) -> None:
    """The same texts, read instead of sampled: the same embeddings, to the rounding of batches.

    The first 8 tokens of any completion can be compared; the rest only of completions that ended by
    themselves, since of others the last token has no state when sampled. A text may come out as
    other tokens than it was sampled as; those are left out.
    """
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
        *("collect", str(path), "--completions", "--layers", "5,20,final", "--windows", "8"),
        *("--max-model-len", "512", "-o", str(folder)),
    )
    given = Dataset.load(folder)
    assert given.rewards.tolist() == sampled.rewards.tolist()
    assert [each.text for each in given.samples] == [each.text for each in sampled.samples]
    pairs = list(zip(given.samples, sampled.samples, strict=True))
    begun = [i for i, (one, two) in enumerate(pairs) if one.token_ids[:8] == two.token_ids[:8]]
    ended = [i for i, (one, two) in enumerate(pairs) if one.token_ids == two.token_ids[:-1]]
    assert len(begun) >= 12
    assert len(ended) >= 2
    for reading in sampled.readings:
        same = begun if reading.window else ended
        right, found = sampled.features(reading)[same], given.features(reading)[same]
        error = (found - right).norm(dim=1) / right.norm(dim=1)
        # Twice what bf16 costs a single token, the worst case: docs/measurements.md.
        assert float(error.square().mean().sqrt()) < 0.04, reading
    for i in ended:
        # What was sampled also has the logarithm of its stop token, which is not part of a text.
        assert given.samples[i].logprob > sampled.samples[i].logprob - 0.1


def test_sampling_with_an_adapter(prompts: Path, collected: Path, tmp_path: Path) -> None:
    """A LoRA adapter of random weights: other texts and states, and the manifest says so."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    generator = torch.Generator().manual_seed(0)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    weights = {
        name.format(layer, part): 0.1 * torch.randn(shape, generator=generator)
        for layer in range(30)
        for part, shape in (("A", (4, 576)), ("B", (576, 4)))
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    folder = tmp_path / "data"
    run(*command(prompts, folder)[1:], "--limit", "2", "--adapter", str(adapter))
    adapted, bare = Dataset.load(folder), Dataset.load(collected)
    assert adapted.manifest["adapter"]["name"] == "adapter"
    pairs = list(zip(adapted.samples, bare.samples, strict=False))
    assert len(pairs) == 2 * N
    assert all(mine.text != other.text for mine, other in pairs)
    assert [mine.seed for mine, _ in pairs] == [other.seed for _, other in pairs]


def test_train_sweep_and_eval(collected: Path, tmp_path: Path) -> None:
    """The commands of the README on a dataset that is far too small to mean anything."""
    small = ["--k", "4", "--folds", "2", "--test-fraction", "0.34"]
    probe, report = tmp_path / "p.safetensors", tmp_path / "report"
    run("train", str(collected), "--layer", "20", "--objective", "mse", *small, "-o", str(probe))
    shown = run("eval", str(probe), str(collected), "-o", str(report), "--no-learning-curve")
    assert "2 prompts, k=4" in shown
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["num_prompts"] == 2
    assert 0 <= metrics["base"]["reward"] <= metrics["ceiling"]["reward"] <= 1
    assert {row["k"] for row in metrics["resampled"]} >= {1, 2, 4}
    assert "<html" in (report / "report.html").read_text()
    swept = tmp_path / "swept"
    shown = run(
        *("sweep", str(collected), "--readings", "20/mean,final/last", "--objectives", "mse"),
        *(*small, "-o", str(swept)),
    )
    assert "20/mean" in shown
    assert load_probe(swept / "probe.safetensors").info.objective == "mse"


def test_training_on_all_prompts_leaves_none_to_evaluate(collected: Path, tmp_path: Path) -> None:
    probe = tmp_path / "p.safetensors"
    flags = ["--layer", "20", "--objective", "mse", "--k", "4", "--folds", "2"]
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


def test_prompts_beyond_the_context_stop_a_collection_before_it_samples(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    long = "word " * 200
    path.write_text(f'{{"prompt": "a", "answer": 1}}\n{{"prompt": "{long}", "answer": 1}}\n')
    done = subprocess.run(
        [
            *(QPROBE, "collect", str(path), "--reward", "numeric", "-o", str(tmp_path / "data")),
            *("--max-model-len", "128"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    (refused,) = [line for line in done.stderr.splitlines() if line.startswith("qprobe: ")]
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


def run(*arguments: str) -> str:
    done = subprocess.run(
        [QPROBE, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
