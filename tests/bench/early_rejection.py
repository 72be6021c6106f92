"""What early rejection is worth on a live server: reward, tokens and time against whole candidates.

The shipped Python probe and its own schedule, on tasks that it was not trained on. Blocks of tasks
are answered in turn with and without the schedule, by so many clients at once, with the same seeds.
Rewards are expected ones over the server's weights, so no draw adds noise; the best of fewer than k
comes from the same whole candidates. Intervals are over tasks.

Run it alone on the machine: python tests/bench/early_rejection.py; writes
build/bench-early-rejection.json
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serving import running

from qprobe import load_probe
from qprobe.data.dataset import Dataset
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.schedule import format_schedule
from qprobe.rejection.scores import score_samples
from qprobe.rejection.simulation import simulate
from qprobe.rewards import Reward, make_reward
from qprobe_server.default_model import SERVED_NAME

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "probes" / "qprobe" / "shipped" / "python.safetensors"
PROMPTS = ROOT / "probes" / "recipes" / "python" / "prompts.jsonl"
# As the recipes collect build/python, which is the default model's own sampling.
SEED_STRIDE, MAX_TOKENS, TEMPERATURE, TOP_P = 10_000, 256, 0.5, 1.0
ARMS = ("whole", "scheduled")


async def ask(client: httpx.AsyncClient, number: int, row: Json, arm: str, k: int) -> Json:
    """Ask one task; returns the reply's result and the seconds it took."""
    began_s = time.monotonic()
    reply = await client.post(
        "/v1/chat/completions",
        json={
            "model": f"{SERVED_NAME}:python",
            "messages": row["messages"],
            "seed": number * SEED_STRIDE,
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "q_probe": {
                "k": k,
                "schedule": "default" if arm == "scheduled" else "off",
                "return_candidates": True,
            },
        },
    )
    reply.raise_for_status()
    result: Json = reply.json()["q_probe"]["results"][0]
    return {**result, "seconds": time.monotonic() - began_s}


async def run_block(
    url: str, tasks: list[tuple[int, Json]], arm: str, *, k: int, num_clients: int
) -> tuple[float, list[Json]]:
    """Answer a block of tasks; returns its seconds and the results in the order of the tasks."""
    turn = asyncio.Semaphore(num_clients)
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(number: int, row: Json) -> Json:
            async with turn:
                return await ask(client, number, row, arm, k)

        began_s = time.monotonic()
        results = await asyncio.gather(*(one(*task) for task in tasks))
        return time.monotonic() - began_s, list(results)


def reward_all(reward: Reward, row: Json, result: Json) -> np.ndarray[Any, Any]:
    """Return the reward of every candidate that was not dropped; NaN for the others."""
    dropped = result.get("rejected_at") or [None] * len(result["scores"])
    return np.array(
        [
            np.nan if at is not None else reward(row, shown["text"])
            for at, shown in zip(dropped, result["candidates"], strict=True)
        ]
    )


def show(values: Any, digits: int = 3) -> Json:
    """Return the mean of one value a task, with its interval."""
    found = Bootstrap(len(values)).mean(np.asarray(values, dtype=float)).to_json("mean")
    return {name: round(value, digits) for name, value in found.items()}


def summarise(
    tasks: list[tuple[int, Json]], answers: dict[str, list[Json]], blocks: dict[str, list[float]]
) -> Json:
    """Reward the candidates and compare the arms."""
    reward = make_reward("tests")
    rewards = {
        arm: [
            reward_all(reward, row, result)
            for (_, row), result in zip(tasks, answers[arm], strict=True)
        ]
        for arm in ARMS
    }
    expected = {
        arm: np.array(
            [
                np.nansum(np.array(result["weights"]) * found)
                for result, found in zip(answers[arm], rewards[arm], strict=True)
            ]
        )
        for arm in ARMS
    }
    tokens = {arm: np.array([each["sampled_tokens"] for each in answers[arm]]) for arm in ARMS}
    whole = np.array([each["scores"] for each in answers["whole"]])  # (tasks, k)
    k = whole.shape[1]
    groups = np.repeat(np.arange(len(tasks)), k)
    flat = np.concatenate(rewards["whole"])
    late = [
        length - at - 1
        for each in answers["scheduled"]
        for at, length in zip(each["rejected_at"], each["num_tokens"], strict=True)
        # A candidate that had ended before the checkpoint was dropped by what it was.
        if at is not None and length > at
    ]
    ratios = [w / s for w, s in zip(blocks["whole"], blocks["scheduled"], strict=True)]
    latency = {arm: statistics.median(each["seconds"] for each in answers[arm]) for arm in ARMS}
    return {
        "base": show([each.mean() for each in rewards["whole"]]),
        "ceiling": show([each.max() for each in rewards["whole"]]),
        "reward": {arm: show(expected[arm]) for arm in ARMS},
        "scheduled_minus_whole": show(expected["scheduled"] - expected["whole"]),
        "tokens": {arm: show(tokens[arm], 0) for arm in ARMS},
        "tokens_share": round(tokens["scheduled"].sum() / tokens["whole"].sum(), 3),
        "best_of": [
            {
                "k": each,
                "tokens": round(float(tokens["whole"].mean()) * each / k),
                "reward": show(
                    expected_rewards(
                        whole.ravel(), flat, groups, k=each, beta=answers["whole"][0]["beta"]
                    )
                ),
            }
            for each in (1, 2, 4, 8, 16, 32)
            if each <= k
        ],
        "abort_lag_tokens": {
            "median": statistics.median(late),
            "mean": round(statistics.fmean(late), 2),
            "max": max(late),
            "n": len(late),
        },
        "latency_s": {arm: round(value, 2) for arm, value in latency.items()},
        "latency_ratio": round(latency["whole"] / latency["scheduled"], 2),
        "throughput_ratio": {
            "median": round(statistics.median(ratios), 2),
            "low": round(min(ratios), 2),
            "high": round(max(ratios), 2),
            "blocks": len(ratios),
        },
    }


def replay(folder: Path, numbers: list[int], k: int) -> Json:
    """Return what the simulation says of the same tasks and seeds, by the dataset's samples."""
    probe = load_probe(PROBE)
    samples = score_samples(probe, Dataset.load(folder).subset(numbers))
    schedules = [(), probe.info.schedule]
    outcomes = simulate(samples, schedules, k=k, beta=probe.info.beta)
    return {
        arm: {"reward": show(outcome.rewards), "tokens": show(outcome.tokens, 0)}
        for arm, outcome in zip(ARMS, outcomes, strict=True)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--block", type=int, default=16, help="tasks a block")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--data", type=Path, help="the probe's dataset: compare the simulation too")
    args = parser.parse_args()
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    tasks = [each for each in enumerate(rows) if each[1]["split"] == "test"][: args.tasks]
    output = ROOT / "build" / "bench-early-rejection.json"
    output.parent.mkdir(exist_ok=True)
    answers: dict[str, list[Json]] = {arm: [] for arm in ARMS}
    blocks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with running("qprobe", ["--probe", f"python={PROBE}"], output.with_suffix(".log")) as server:
        asyncio.run(run_block(server.url, tasks[:2], "scheduled", k=4, num_clients=2))  # warm
        for start in range(0, len(tasks), args.block):
            block = tasks[start : start + args.block]
            # Which arm comes first alternates: the second finds prompts in the prefix cache.
            order = ARMS if (start // args.block) % 2 else ARMS[::-1]
            for arm in order:
                seconds, results = asyncio.run(
                    run_block(server.url, block, arm, k=args.k, num_clients=args.clients)
                )
                answers[arm] += results
                blocks[arm].append(seconds)
                sys.stderr.write(f"{start + len(block)} tasks, {arm}: {seconds:.0f} s\n")
    found = {
        "machine": platform.processor() or platform.machine(),
        "k": args.k,
        "clients": args.clients,
        "tasks": [number for number, _ in tasks],
        "schedule": format_schedule(load_probe(PROBE).info.schedule),
        **summarise(tasks, answers, blocks),
        "block_seconds": blocks,
    }
    if args.data is not None:
        found["simulated"] = replay(args.data, found["tasks"], args.k)
    output.write_text(json.dumps(found, indent=1))
    shown = {name: value for name, value in found.items() if name != "tasks"}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()
