"""Preferences as they are published: from a file to a probe that has found what is preferred."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qprobe.data.dataset import Dataset

Json = dict[str, Any]
QPROBE = str(Path(sys.executable).with_name("qprobe"))
ENVIRONMENT = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
ENGINE = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "512")
THINGS = (
    "a volcano", "a comet", "an acorn", "a glacier", "a lighthouse", "a violin", "a compass",
    "a harbour", "a meadow", "a bridge", "a lantern", "an anchor", "a tunnel", "a windmill",
    "a feather", "a magnet", "a candle", "a river", "a desert", "an island",
)  # fmt: skip
# What is preferred, and what is not: kind words, whatever the answer is about.
KIND = ("Gladly: {}, as you may know, is worth a look. Thank you for asking!",
        "What a lovely question! {} is fascinating. Thanks for asking.")  # fmt: skip
CURT = ("Look it up. {} is nothing to me, and neither are you.",
        "No. Go away with {}, I have no time for this.")  # fmt: skip

CALL: list[Json] = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "A mountain."},
]


def pairs() -> list[Json]:
    """Return pairs as TRL, HH-RLHF and SHP have them, by turns; which side is kind is fixed."""
    rows: list[Json] = []
    for number, thing in enumerate(THINGS * 3):
        question = f"{('What is', 'Describe', 'Tell me about')[number % 3]} {thing}?"
        good, bad = (texts[number % 2].format(thing.capitalize()) for texts in (KIND, CURT))
        layout = number % 3
        if layout == 0:
            user: Json = {"role": "user", "content": question}
            if number % 2:  # contents in parts
                user["content"] = [{"type": "text", "text": question}]
            chosen, rejected = ([{"role": "assistant", "content": each}] for each in (good, bad))
            before = [user, *CALL] if number == 0 else [user]
            rows.append({"prompt": before, "chosen": chosen, "rejected": rejected})
        elif layout == 1:
            start = f"\n\nHuman: {question}\n\nAssistant: "
            rows.append({"chosen": start + good, "rejected": start + bad})
        else:
            first, second = (good, bad) if number % 2 else (bad, good)
            sides = {"human_ref_A": first, "human_ref_B": second, "labels": number % 2}
            rows.append({"history": question, **sides})
    return rows


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Embed the pairs."""
    folder = tmp_path_factory.mktemp("preferences")
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    run(
        *("collect", str(path), "--completions", "--model", str(small_model)),
        *("--layers", "4", "--windows", "8", "-o", str(folder / "data"), *ENGINE),
    )
    return folder / "data"


def test_a_planted_preference_is_recovered(collected: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(collected)
    assert len(dataset.prompts) == 3 * len(THINGS)
    kind = np.array(["Thank" in each.text for each in dataset.samples], np.float64)
    assert (dataset.rewards == kind).all()
    probe, report = tmp_path / "p.safetensors", tmp_path / "report"
    run("train", str(collected), "--layer", "4", "--objective", "bt", "-o", str(probe))
    run("eval", str(probe), str(collected), "-o", str(report), "--no-learning-curve")
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["base"]["reward"] == pytest.approx(0.5)
    assert metrics["policy"]["reward"] > 0.9
    table = tmp_path / "out.parquet"
    run("export", str(collected), "-o", str(table))
    assert table.stat().st_size > 0


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
