"""What ten thousand loaded probes cost: load time, memory, and latency against one probe.

One engine. With 10,000 probes loaded, of two layers, 64 requests of one candidate run at once: all
by the same probe, or each by another, in turn. Every request generates the same number of tokens
(EOS ignored). The ratio is that of the median wall times; the quartiles are those of the rounds'
own ratios. Also timed, before the others are loaded and so not in turn: the same with one loaded.

Run it alone on the machine: python tests/bench/many_probes.py
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import psutil
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind

from qprobe import Terms
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.default_model import prepare_default_model
from qprobe_server.library.lifecycle import ProbeLifecycle
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe, read_probe
from qprobe_server.vllm_backend.checks import find_worker_cls
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.cpu import choose_dtype
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

SHIPPED = Path(__file__).parents[2] / "probes" / "qprobe" / "shipped" / "python.safetensors"
NUM_PROBES = 10_000
NUM_REQUESTS = 64
NUM_TOKENS = 32
FIELDS = {"temperature": 0.8, "max_tokens": NUM_TOKENS, "ignore_eos": True}


def make_copies(probe: LoadedProbe, count: int) -> list[LoadedProbe]:
    """Return a probe's first reading under many names, by turns of its layer and the final one."""
    state = probe.probe.terms.states[0]
    info = replace(probe.probe.info, checkpoints=(), schedule=())
    copies = [
        type(probe.probe)(info, Terms.linear(reading, state.weight))
        for reading in (state.reading, replace(state.reading, layer="final"))
    ]
    made = [
        replace(probe, name=f"probe-{number}", probe=copies[number % 2]) for number in range(count)
    ]
    return made


def worker_mib(name: str) -> float:
    """Return the unshared memory of this process ('') or of its worker."""
    own = psutil.Process()
    found = [own] if not name else [p for p in own.children(recursive=True) if name in p.name()]
    return float(sum(each.memory_full_info().uss for each in found) / 2**20)


async def ask(engine: RerankingLLM, prompt: list[int], probe: ServedProbe, seed: int) -> None:
    """Run one request of one candidate."""
    rerank = Rerank(RerankRequest(probes=((probe, 1.0),), k=1, beta=0.1))
    token = current_rerank.set(rerank)
    try:
        params = SamplingParams(seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **FIELDS)
        wrapped = {"type": "token", "prompt_token_ids": prompt}
        async for _ in engine.generate(wrapped, params, f"bench-{seed}"):
            pass
    finally:
        current_rerank.reset(token)
    assert len(rerank.results[0].scores) == 1


async def time_batch(
    engine: RerankingLLM, prompt: list[int], probes: Sequence[ServedProbe], round_number: int
) -> float:
    """Return how long requests of these probes take together, in seconds."""
    first = round_number * NUM_REQUESTS
    begun_s = time.perf_counter()
    await asyncio.gather(
        *(
            asyncio.create_task(ask(engine, prompt, probe, first + index))
            for index, probe in enumerate(probes)
        )
    )
    return time.perf_counter() - begun_s


async def run(rounds: int) -> dict[str, Any]:
    """Start the engine and measure everything."""
    loaded = read_probe("one", SHIPPED.read_bytes())
    args = AsyncEngineArgs(
        model=str(prepare_default_model()),
        enforce_eager=True,
        max_model_len=2048,
        dtype=choose_dtype(),
        worker_cls=find_worker_cls("ScoringWorker"),
        additional_config={ADDITIONAL_CONFIG: {"layers": loaded.probe.terms.layers}},
    )
    engine = RerankingLLM.from_vllm_config(args.create_engine_config())
    try:
        tokenizer = engine.get_tokenizer()
        prompt = list(tokenizer.encode("Write a Python function that adds two numbers."))
        registry = ProbeRegistry()
        lifecycle = ProbeLifecycle(
            registry,
            load=engine.load_probes,
            check=lambda info: None,
            store=None,
            default_probe=None,
        )
        await lifecycle.start([loaded])
        (one,) = registry.probes()
        alone = [one] * NUM_REQUESTS
        for _ in range(2):
            await time_batch(engine, prompt, alone, 0)  # warm up
        alone_s = [await time_batch(engine, prompt, alone, 3 + n) for n in range(rounds)]
        before = {"worker": worker_mib("Worker"), "server": worker_mib("")}
        copies = make_copies(loaded, NUM_PROBES)
        begun_s = time.perf_counter()
        await lifecycle.start(copies)
        load_s = time.perf_counter() - begun_s
        del copies
        gc.collect()
        after = {"worker": worker_mib("Worker"), "server": worker_mib("")}
        many = registry.probes()[1:]
        times: dict[str, list[float]] = {"one": [], "many": []}
        rng = random.Random(0)
        await time_batch(engine, prompt, rng.sample(many, NUM_REQUESTS), 2)
        for number in range(rounds):
            chosen = {"one": alone, "many": rng.sample(many, NUM_REQUESTS)}
            for name in ("one", "many") if number % 2 else ("many", "one"):
                times[name].append(await time_batch(engine, prompt, chosen[name], 3 + number))
    finally:
        engine.shutdown(timeout=5)
    ratios = [a / b for a, b in zip(times["many"], times["one"], strict=True)]
    return {
        "probes": NUM_PROBES,
        "load_s": load_s,
        "weights_mib": NUM_PROBES * loaded.probe.info.hidden_size * 4 / 2**20,
        "added_mib": {name: after[name] - before[name] for name in before},
        "ratio": statistics.median(times["many"]) / statistics.median(times["one"]),
        "quartiles": statistics.quantiles(ratios, n=4),
        "median_s": {name: statistics.median(each) for name, each in times.items()},
        "median_s_with_one_loaded": statistics.median(alone_s),
        "rounds": rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measure, print and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/bench-many-probes.json"))
    args = parser.parse_args()
    found = json.dumps(asyncio.run(run(args.rounds)), indent=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(found)
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main()
