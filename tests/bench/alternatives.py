"""What people do instead of reranking in the engine costs, against bare sampling of the same k.

two_pass      bare sampling, then a second pass of the same model over prompt and completions for
              the embeddings (plain transformers, the engine's dtype, one batch)
transformers  plain transformers generate() of the same k with hidden states

Every variant generates the same number of tokens for the same prompt (EOS ignored), in turn. The
ratios are of median wall times; their spread is the range of the ratios of the rounds. On a CPU,
where a second model in the same process finds memory.

Run it alone on the machine: python tests/bench/alternatives.py
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from qprobe_server.default_model import prepare_default_model
from qprobe_server.vllm_backend.cpu import choose_dtype

QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."
KS = (4, 16, 48)
NUM_TOKENS = 64

Variant = Callable[[int, int], Awaitable[object]]


class Bench:
    """One engine, one prompt, and the model once more in plain transformers."""

    def __init__(self, engine: AsyncLLM, model_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._engine = engine
        self._prompt_ids = engine.get_tokenizer().encode(QUESTION)
        dtype = torch.float32 if choose_dtype() == "float32" else torch.bfloat16
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)

    async def bare(self, k: int, seed: int) -> list[list[int]]:
        """Sample n = k as vLLM does; return the tokens."""
        params = SamplingParams(
            n=k,
            seed=seed,
            temperature=0.8,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"type": "token", "prompt_token_ids": self._prompt_ids}
        outputs = [each async for each in self._engine.generate(prompt, params, f"bench-{seed}")]
        return [list(each.token_ids) for each in outputs[-1].outputs]

    async def two_pass(self, k: int, seed: int) -> None:
        """Sample as vLLM does, then embed the completions by a second pass."""
        sampled = await self.bare(k, seed)
        ids = torch.tensor([self._prompt_ids + tokens for tokens in sampled])
        with torch.inference_mode():
            self._model(ids, output_hidden_states=True)

    async def transformers(self, k: int, seed: int) -> None:
        """Sample with plain transformers, keeping the hidden states."""
        torch.manual_seed(seed)
        with torch.inference_mode():
            self._model.generate(
                torch.tensor([self._prompt_ids]),
                do_sample=True,
                num_return_sequences=k,
                min_new_tokens=NUM_TOKENS,
                max_new_tokens=NUM_TOKENS,
                output_hidden_states=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )

    async def measure(self, k: int, rounds: int) -> dict[str, list[float]]:
        """Return the wall times of every variant in seconds; the order turns with the round."""
        variants: dict[str, Variant] = {
            "bare": self.bare,
            "two_pass": self.two_pass,
            "transformers": self.transformers,
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for name in names:
            await variants[name](k, 0)  # warm up
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                begun_s = time.perf_counter()
                await variants[name](k, number + 1)
                times[name].append(time.perf_counter() - begun_s)
        return times


def compare(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Return a variant against ``bare``: ratio of medians, and the rounds' own ratios."""
    ratios = [a / b for a, b in zip(times[name], times["bare"], strict=True)]
    return {
        "ratio": statistics.median(times[name]) / statistics.median(times["bare"]),
        "least": min(ratios),
        "most": max(ratios),
        "rounds": len(ratios),
    }


async def run(rounds: int) -> dict[str, Any]:
    """Start the engine and measure everything."""
    model_path = prepare_default_model()
    args = AsyncEngineArgs(
        model=str(model_path), enforce_eager=True, max_model_len=2048, dtype=choose_dtype()
    )
    engine = AsyncLLM.from_vllm_config(args.create_engine_config())
    try:
        bench = Bench(engine, model_path)
        found = {k: await bench.measure(k, rounds) for k in KS}
    finally:
        engine.shutdown(timeout=5)
    return {
        name: {str(k): compare(times, name) for k, times in found.items()}
        for name in ("two_pass", "transformers")
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(asyncio.run(run(args.rounds)), indent=1) + "\n")


if __name__ == "__main__":
    main()
