"""How many tokens one API process carries: what it computes for a token, reranked or not.

A Llama of two tiny layers, so that the engine gives tokens as fast as it can and the API process
has the most to do. Several clients ask at once for 16 samples each, or for the best of 16, streamed
and not; plain ``vllm serve`` beside ``qprobe serve``, one after the other. For each kind:

us a token    processor time of the API process for a token that was sampled
carries       1 / that: tokens a second at which one process would be busy all the time
share         of its own processor that it was busy here
tokens/s      sampled here, by engine, API process and clients together

Run it alone on the machine: python tests/bench/api_process.py
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from serving import Server, engine_settings, running, write_probes

from qprobe_server.default_model import prepare_default_model

Json = dict[str, Any]

NAME = "tiny"
K, NUM_TOKENS = 16, 128
HIDDEN, NUM_LAYERS = 64, 2
TINY = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "vocab_size": 4096,
}
BARE: Json = {"n": K}
RERANKED: Json = {"q_probe": {"probe": "one", "k": K, "schedule": "off"}}
STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}
KINDS = {
    "n = 16": BARE,
    "n = 16, streamed": {**BARE, **STREAM},
    "k = 16, reranked": RERANKED,
    "k = 16, reranked, streamed": {**RERANKED, **STREAM},
}


async def load(server: Server, fields: Json, clients: int, requests: int) -> Json:
    """Have clients ask one after another; return what one round of it cost."""
    body = {
        "model": NAME,
        "prompt": list(range(10, 30)),  # the tokenizer has more tokens than the model
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        **fields,
    }

    async def ask_often(client: httpx.AsyncClient) -> None:
        for _ in range(requests):
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                assert reply.status_code == 200, await reply.aread()
                async for _ in reply.aiter_raw():
                    pass

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        before, begun_s = server.api_process.cpu_times(), time.perf_counter()
        await asyncio.gather(*(ask_often(client) for _ in range(clients)))
        seconds, after = time.perf_counter() - begun_s, server.api_process.cpu_times()
    busy_s = after.user + after.system - before.user - before.system
    tokens = clients * requests * K * NUM_TOKENS
    return {"busy_s": busy_s, "seconds": seconds, "tokens": tokens}


def summarise(rounds: list[Json]) -> Json:
    """Return the medians of the rounds, and the spread of what a token costs."""
    costs = [each["busy_s"] / each["tokens"] * 1e6 for each in rounds]
    return {
        "us_a_token": statistics.median(costs),
        "least": min(costs),
        "most": max(costs),
        "carries": 1e6 / statistics.median(costs),
        "share": statistics.median(each["busy_s"] / each["seconds"] for each in rounds),
        "tokens_s": statistics.median(each["tokens"] / each["seconds"] for each in rounds),
    }


async def measure(server: Server, kinds: dict[str, Json], args: argparse.Namespace) -> Json:
    """Return the summary of each kind; the kinds take turns."""
    rounds: dict[str, list[Json]] = {name: [] for name in kinds}
    for number in range(args.rounds + 1):
        for name, fields in kinds.items():
            found = await load(server, fields, args.clients, args.requests if number else 1)
            if number:  # the first warms up
                rounds[name].append(found)
    return {name: summarise(each) for name, each in rounds.items()}


def show(results: dict[str, Json]) -> str:
    """Return the table."""
    lines = [f"{'':40}{'us a token':>26}{'carries':>10}{'share':>8}{'tokens/s':>10}"]
    lines += [
        f"{name:40}{each['us_a_token']:12.1f} ({each['least']:.1f} to {each['most']:.1f})"
        f"{each['carries']:10,.0f}{each['share']:8.0%}{each['tokens_s']:10,.0f}"
        for name, each in results.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2, help="of each client in a round")
    parser.add_argument("--out", type=Path, default=Path("build/bench-api-process.json"))
    args = parser.parse_args()
    folder = args.out.parent / "bench-tiny-probes"
    probes = write_probes(folder, hidden_size=HIDDEN, num_layers=NUM_LAYERS)
    flags = [str(prepare_default_model()), "--served-model-name", NAME, *engine_settings()]
    flags += ["--load-format", "dummy", "--hf-overrides", json.dumps(TINY)]
    flags += ["--max-model-len", "1024"]
    ours = ["--allow-model-mismatch", "--probe", f"one={probes['one']}"]
    bare = {name: fields for name, fields in KINDS.items() if "q_probe" not in fields}
    results: dict[str, Json] = {}
    for program, kinds, more in (("vllm", bare, []), ("qprobe", KINDS, ours)):
        log = args.out.with_name(f"{args.out.stem}-{program}.log")
        with running(program, [*flags, *more], log) as server:  # type: ignore[arg-type]  # a str
            found = asyncio.run(measure(server, kinds, args))
        results |= {f"{program} serve, {name}": each for name, each in found.items()}
    args.out.write_text(json.dumps({"clients": args.clients, "results": results}, indent=1))
    sys.stdout.write(show(results))


if __name__ == "__main__":
    main()
