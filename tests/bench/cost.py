"""What reranking costs: one engine, bare and reranked sampling of the same k in turn.

Every variant generates the same number of tokens for the same prompts (EOS ignored). The ratios are
of median wall times; their spread is the range of the ratios of the rounds, each of one bare and
one reranked request a few seconds apart. Also timed: what people do instead.

two_pass      bare sampling, then a second pass of the same model over prompt and completions for
              the embeddings (plain transformers, the engine's dtype, one batch)
transformers  plain transformers generate() of the same k with hidden states, likewise

Run it alone on the machine: make bench
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
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

from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.default_model import prepare_default_model
from qprobe_server.library.registry import ProbeRegistry, ServedProbe, read_probe
from qprobe_server.vllm_backend.checks import find_worker_cls
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.cpu import choose_dtype
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

PROBE = Path(__file__).parents[2] / "probes" / "qprobe" / "shipped" / "python.safetensors"
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."
KS = (4, 16, 48)
NUM_TOKENS = 64


class Bench:
    """One engine, one probe, one prompt."""

    def __init__(self, engine: RerankingLLM, probe: ServedProbe, model_path: Path) -> None:
        self._engine = engine
        self._probe = probe
        self._model_path = model_path
        tokenizer = engine.get_tokenizer()
        messages = [{"role": "user", "content": QUESTION}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        self._prompt_ids = tokenizer.encode(text, add_special_tokens=False)
        self._model: Any = None

    async def bare(self, k: int, seed: int) -> list[list[int]]:
        """Sample n = k as vLLM does; return the tokens."""
        return await self._generate(n=k, seed=seed)

    async def reranked(self, k: int, seed: int) -> list[list[int]]:
        """Sample k, score them and answer with one."""
        rerank = Rerank(RerankRequest(probes=((self._probe, 1.0),), k=k, beta=0.1))
        token = current_rerank.set(rerank)
        try:
            answer = await self._generate(n=1, seed=seed)
        finally:
            current_rerank.reset(token)
        assert rerank.results[0].sampled_tokens == k * NUM_TOKENS
        return answer

    async def two_pass(self, k: int, seed: int) -> None:
        """Sample as vLLM does, then embed the completions by a second pass."""
        sampled = await self.bare(k, seed)
        ids = torch.tensor([self._prompt_ids + tokens for tokens in sampled])
        with torch.inference_mode():
            self._transformers()(ids, output_hidden_states=True)

    async def transformers(self, k: int, seed: int) -> None:
        """Sample with plain transformers, keeping the hidden states."""
        torch.manual_seed(seed)
        with torch.inference_mode():
            self._transformers().generate(
                torch.tensor([self._prompt_ids]),
                do_sample=True,
                num_return_sequences=k,
                min_new_tokens=NUM_TOKENS,
                max_new_tokens=NUM_TOKENS,
                output_hidden_states=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )

    async def _generate(self, *, n: int, seed: int) -> list[list[int]]:
        params = SamplingParams(
            n=n,
            seed=seed,
            temperature=0.8,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"type": "token", "prompt_token_ids": self._prompt_ids}
        outputs = [each async for each in self._engine.generate(prompt, params, f"bench-{seed}")]
        return [list(each.token_ids) for each in outputs[-1].outputs]

    def _transformers(self) -> Any:
        if self._model is None:
            from transformers import AutoModelForCausalLM

            dtype = torch.float32 if choose_dtype() == "float32" else torch.bfloat16
            self._model = AutoModelForCausalLM.from_pretrained(self._model_path, dtype=dtype)
        return self._model


Variant = Callable[[int, int], Awaitable[object]]


async def measure(variants: Mapping[str, Variant], k: int, rounds: int) -> dict[str, list[float]]:
    """Return the wall times of every variant in seconds; the order turns with the round."""
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
    ratios = sorted(a / b for a, b in zip(times[name], times["bare"], strict=True))
    return {
        "ratio": statistics.median(times[name]) / statistics.median(times["bare"]),
        "quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios,
        "median_s": statistics.median(times[name]),
        "bare_median_s": statistics.median(times["bare"]),
        "rounds": len(ratios),
    }


async def run(rounds: int) -> dict[str, Any]:
    """Start the engine and measure everything."""
    model_path = prepare_default_model()
    loaded = read_probe("python", PROBE.read_bytes())
    probe = ProbeRegistry().reserve(loaded)
    layer = probe.info.layer
    args = AsyncEngineArgs(
        model=str(model_path),
        enforce_eager=True,
        max_model_len=2048,
        dtype=choose_dtype(),
        worker_cls=find_worker_cls("ScoringWorker"),
        additional_config={ADDITIONAL_CONFIG: {"layers": [] if layer == "final" else [layer]}},
    )
    engine = RerankingLLM.from_vllm_config(args.create_engine_config())
    results: dict[str, Any] = {"reranked": {}, "two_pass": {}, "transformers": {}}
    try:
        await engine.load_probes([(probe, loaded.probe)])
        bench = Bench(engine, probe, model_path)
        for k in KS:
            quick = {"bare": bench.bare, "reranked": bench.reranked}
            times = await measure(quick, k, rounds)
            results["reranked"][k] = compare(times, "reranked")
            slow = {
                "bare": bench.bare,
                "two_pass": bench.two_pass,
                "transformers": bench.transformers,
            }
            times = await measure(slow, k, max(2, rounds // 5))
            for name in ("two_pass", "transformers"):
                results[name][k] = compare(times, name)
    finally:
        engine.shutdown(timeout=5)
    return results


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    results = asyncio.run(run(args.rounds))
    report: dict[str, Any] = {
        f"{name}_over_bare": {str(k): found["ratio"] for k, found in by_k.items()}
        for name, by_k in results.items()
    }
    report["detail"] = results
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    report["tokens_per_candidate"] = NUM_TOKENS
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2))
    write = sys.stdout.write
    write(f"{report['machine']}; {NUM_TOKENS} tokens a candidate; wall time over bare sampling\n")
    write(f"{'':14}{'k':>4}{'ratio':>8}{'quartiles of rounds':>24}{'bare s':>9}{'s':>9}{'n':>4}\n")
    for name, by_k in results.items():
        for k, found in by_k.items():
            low, *_, high = found["quartiles"]
            write(
                f"{name:14}{k:4}{found['ratio']:8.3f}{low:14.3f} - {high:.3f}  "
                f"{found['bare_median_s']:9.2f}{found['median_s']:9.2f}{found['rounds']:4}\n"
            )


if __name__ == "__main__":
    main()
