"""What the API process keeps of a stream's candidates while they are sampled.

One engine in a process of its own; this one is the API process. One streamed prompt of k candidates
that all have the same number of tokens (EOS ignored); traced is what Python has allocated, at most,
above what it had before. What is kept grows with the tokens, so the script also says what it would
be for 4,096 each.

Run it with a model's folder: python tests/bench/stream_memory.py MODEL
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import tracemalloc
from typing import Any

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind

from qprobe import Probe, ProbeInfo, Reading, Terms
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe
from qprobe_server.vllm_backend.checks import find_worker_cls
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

MIB = 2**20
SHOWN_TOKENS = 4096


def make_probe(hidden_size: int, num_layers: int) -> LoadedProbe:
    """Return a probe of the final layer; what it scores does not matter."""
    info = ProbeInfo(
        base_model="any",
        hidden_size=hidden_size,
        num_layers=num_layers,
        objective="ce",
        k=4,
        beta=0.1,
    )
    terms = Terms.linear(Reading("final", "mean"), torch.ones(hidden_size))
    return LoadedProbe("one", "1", 0, Probe(info, terms))


async def stream(
    engine: RerankingLLM, served: ServedProbe, k: int, num_tokens: int, logprobs: int | None
) -> float:
    """Answer one prompt; return the most MiB that were held above those before."""
    rerank = Rerank(RerankRequest(probes=((served, 1.0),), k=k, beta=0.1))
    params = SamplingParams(
        output_kind=RequestOutputKind.DELTA,
        seed=0,
        max_tokens=num_tokens,
        ignore_eos=True,
        logprobs=logprobs,
    )
    gc.collect()
    tracemalloc.start()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    token = current_rerank.set(rerank)
    try:
        prompt = {"type": "token", "prompt_token_ids": [1, 2, 3, 4]}
        async for output in engine.generate(prompt, params, f"bench-{logprobs}"):
            del output
    finally:
        current_rerank.reset(token)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - before) / MIB


async def run(model: str, k: int, num_tokens: int) -> list[dict[str, Any]]:
    """Start the engine and measure, without logprobs and with 20 a token."""
    args = AsyncEngineArgs(
        model=model,
        enforce_eager=True,
        max_model_len=num_tokens + 16,
        max_num_seqs=k,
        dtype="float32",
        block_size=32,
        worker_cls=find_worker_cls("ScoringWorker"),
        additional_config={ADDITIONAL_CONFIG: {"layers": []}},
    )
    engine = RerankingLLM.from_vllm_config(args.create_engine_config())
    try:
        config = engine.model_config.hf_config
        loaded = make_probe(config.hidden_size, config.num_hidden_layers)
        served = ProbeRegistry().reserve(loaded)
        await engine.load_probes([(served, loaded.probe)])
        await stream(engine, served, 2, 8, 1)  # what is made once
        found = []
        for logprobs in (None, 20):
            held = await stream(engine, served, k, num_tokens, logprobs)
            found.append(
                {
                    "k": k,
                    "tokens": num_tokens,
                    "top_logprobs": logprobs,
                    "mib": round(held, 1),
                    f"mib_of_{SHOWN_TOKENS}_tokens": round(held * SHOWN_TOKENS / num_tokens, 1),
                }
            )
    finally:
        engine.shutdown(timeout=5)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    found = asyncio.run(run(args.model, args.k, args.tokens))
    sys.stdout.write("".join(json.dumps(each) + "\n" for each in found))


if __name__ == "__main__":
    main()
