"""Makes the shipped probe ``python`` from scratch: sample, reward, embed, train, test.

Needs a running server of the default model, and the file of tasks beside this one:

    make serve
    .venv/bin/python probes/recipes/python/make_probe.py --data build/python --out p.safetensors

Sampling is done by the server, task by task, into ``samples.jsonl``; started again it goes on where
it was stopped. Everything else takes a few minutes. The model's code is run with limits of time,
memory and file size only, not in a sandbox.
"""

import argparse
import asyncio
import json
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qprobe import Probe, ProbeInfo, save_probe
from qprobe.probe import Layer
from qprobe_server.default_model import prepare_default_model

TASKS = Path(__file__).with_name("tasks.jsonl")
NUM_TASKS = 96
NUM_SAMPLES = 16
NUM_LAYERS = 30
LAYERS: tuple[Layer, ...] = (10, 15, 20, 25, "final")
WEIGHT_DECAYS = (10.0, 100.0, 1e3, 1e4)
BETA = 0.1
NUM_FOLDS = 5

Json = dict[str, Any]


async def sample(tasks: list[Json], url: str, path: Path) -> None:
    """Append to a JSONL file n completions of every task that is not there yet."""
    have = {json.loads(line)["id"] for line in _whole_lines(path)}
    missing = [task for task in tasks if task["id"] not in have]
    if not missing:
        return
    limit = asyncio.Semaphore(10)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        async def one(task: Json) -> None:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": task["prompt"]}],
                "n": NUM_SAMPLES,
                "seed": 0,
                "return_token_ids": True,
            }
            async with limit:
                reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status()
            answer = reply.json()
            row = {
                "id": task["id"],
                "prompt_token_ids": answer["prompt_token_ids"],
                "samples": [
                    {
                        "text": choice["message"]["content"] or "",
                        "token_ids": choice["token_ids"],
                        "finish_reason": choice["finish_reason"],
                    }
                    for choice in answer["choices"]
                ],
            }
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(f"sampled {task['id']}\n")

        await asyncio.gather(*(one(task) for task in missing))


def _whole_lines(path: Path) -> list[str]:
    """Return the file's lines; cuts off a last one that was torn."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()


def passes(text: str, tests: list[str]) -> bool:
    """Run the answer's code against the tests, in a process of its own with limits."""
    block = re.search(r"```(?:python)?\n(.*?)(?:```|$)", text, re.DOTALL)
    code = block.group(1) if block else text
    marker = "all tests passed"
    program = "\n".join([code, *tests, f"print({marker!r})"])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and done.stdout.rstrip().endswith(marker)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@torch.inference_mode()
def embed(rows: list[Json], model_path: str) -> dict[Layer, Tensor]:
    """Return mean-pooled states of every completion by layer: (tasks, samples, hidden).

    Plain transformers in the engine's bf16; tests/engine/test_parity.py bounds the difference from
    the engine's states.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_path, dtype=torch.bfloat16)
    found: dict[Layer, list[Tensor]] = {layer: [] for layer in LAYERS}
    for number, row in enumerate(rows):
        prompt = row["prompt_token_ids"]
        for each in row["samples"]:
            # As the server scores: the last token generated has no state (see count_scored_tokens).
            kept = each["token_ids"][:-1]
            states = model(torch.tensor([prompt + kept]), output_hidden_states=True).hidden_states
            first = len(prompt) if kept else len(prompt) - 1
            for layer in LAYERS:
                state = states[-1 if layer == "final" else int(layer)][0]
                found[layer].append(state[first:].float().mean(0))
        sys.stderr.write(f"embedded {number + 1} of {len(rows)}\r")
    return {
        layer: torch.stack(each).view(len(rows), NUM_SAMPLES, -1) for layer, each in found.items()
    }


@dataclass(frozen=True)
class Fit:
    """A linear head on raw features, scaled so that scores spread by 1 within a prompt."""

    weight: Tensor  # (hidden,)
    bias: float

    def score(self, features: Tensor) -> Tensor:
        """Score features (..., hidden): (...)."""
        return features @ self.weight + self.bias


def fit(features: Tensor, rewards: Tensor, weight_decay: float) -> Fit:
    """Train a linear probe by binary cross entropy (the paper's L_CE) with full-batch L-BFGS.

    Args:
        features: (tasks, samples, hidden) float32.
        rewards: (tasks, samples), in [0, 1].
        weight_decay: L2 penalty on the weights of the standardised features.
    """
    flat, target = features.flatten(0, 1), rewards.flatten()
    mean, std = flat.mean(0), flat.std(0).clamp_min(1e-6)
    inputs = (flat - mean) / std
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        loss = loss + weight_decay * weight.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    raw = weight.detach() / std
    spread = (features @ raw).std(1).mean().clamp_min(1e-6)
    return Fit(raw / spread, float((bias.detach() - mean @ raw) / spread))


def expected_reward(scores: Tensor, rewards: Tensor, beta: float) -> float:
    """Mean over tasks of sum_i softmax(scores / beta)_i rewards_i: no draw, so no draw's noise."""
    return float(((scores / beta).softmax(1) * rewards).sum(1).mean())


def cross_validate(features: Tensor, rewards: Tensor, weight_decay: float) -> float:
    """Return the expected reward on held-out folds of the tasks."""
    folds = torch.arange(len(features)) % NUM_FOLDS
    total = 0.0
    for fold in range(NUM_FOLDS):
        held = folds == fold
        head = fit(features[~held], rewards[~held], weight_decay)
        total += expected_reward(head.score(features[held]), rewards[held], BETA) * int(held.sum())
    return total / len(features)


def bootstrap(values: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of the mean over tasks."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def report(scores: Tensor, rewards: Tensor, beta: float) -> dict[str, Any]:
    """Return what the probe gains on tasks that it has not seen, with 95 % intervals over tasks."""
    resampled = ((scores / beta).softmax(1) * rewards).sum(1)
    named = {"base": rewards.mean(1), "resampled": resampled, "ceiling": rewards.amax(1)}
    return {
        name: {"reward": float(values.mean()), "interval": bootstrap(values)}
        for name, values in named.items()
    }


def choose_head(features: dict[Layer, Tensor], rewards: Tensor) -> tuple[Layer, float, list[Json]]:
    """Return the layer and weight decay that do best in cross-validation, and every result."""
    table: list[Json] = []
    for layer, values in features.items():
        for weight_decay in WEIGHT_DECAYS:
            reward = cross_validate(values, rewards, weight_decay)
            table.append({"layer": layer, "weight_decay": weight_decay, "reward": reward})
            sys.stderr.write(f"layer {layer} weight decay {weight_decay}: {reward:.3f}\n")
    best = max(table, key=lambda row: row["reward"])
    return best["layer"], best["weight_decay"], table


def main() -> None:
    """Make the probe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--data", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--out", type=Path, required=True, help="the probe's file")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    tasks = [json.loads(line) for line in TASKS.read_text().splitlines()][:NUM_TASKS]
    path = args.data / "samples.jsonl"
    asyncio.run(sample(tasks, args.url, path))

    by_id = {row["id"]: row for row in map(json.loads, _whole_lines(path))}
    rows = [by_id[task["id"]] for task in tasks]
    rewards = torch.tensor(
        [
            [float(passes(each["text"], task["tests"])) for each in row["samples"]]
            for task, row in zip(tasks, rows, strict=True)
        ]
    )  # (tasks, samples)
    model_path = prepare_default_model()
    embedded = args.data / "features.safetensors"
    if not embedded.exists():
        made = embed(rows, str(model_path))
        save_file({str(layer): values for layer, values in made.items()}, embedded)
    stored = load_file(embedded)
    features = {layer: stored[str(layer)] for layer in LAYERS}
    # The six categories of tasks take turns in the file, so that each half has as many of each.
    train = torch.tensor([index // 6 % 2 == 0 for index in range(len(tasks))])

    seen = {layer: values[train] for layer, values in features.items()}
    layer, weight_decay, table = choose_head(seen, rewards[train])
    head = fit(seen[layer], rewards[train], weight_decay)
    held_out = report(head.score(features[layer][~train]), rewards[~train], BETA)
    summary = {
        "task": "one-line Python functions; reward 1 if the task's tests pass",
        "train_tasks": int(train.sum()),
        "test_tasks": int((~train).sum()),
        "samples_per_task": NUM_SAMPLES,
        "weight_decay": weight_decay,
        "beta": BETA,
        "held_out": held_out,
    }
    info = ProbeInfo(
        base_model=model_path.name,
        hidden_size=features[layer].shape[-1],
        num_layers=NUM_LAYERS,
        layer=layer,
        pooling="mean",
        objective="ce",
        k=NUM_SAMPLES,
        beta=BETA,
        training=summary,
        licence="Apache-2.0",
    )
    save_probe(Probe(info, [(head.weight[None], torch.tensor([head.bias]))]), args.out)
    (args.data / "report.json").write_text(
        json.dumps({**summary, "layer": layer, "cross_validation": table}, indent=2)
    )
    sys.stdout.write(json.dumps({"layer": layer, **summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
