"""What reranking costs: ``qprobe serve`` against plain ``vllm serve``, over HTTP.

Plain vLLM has no worker of ours, exposes no layer and runs as it likes; both have the same settings
of cache and compilation. One request at a time, all of 64 tokens a sample (EOS ignored):

plain         n = k of ``vllm serve``
not reranked  n = k of ``qprobe serve``, whose engine exposes the layers of four probes
reranked      the best of k by one of them; streamed, by a mix of all, and with early rejection too;
              with --logprobs also by a probe that reads log-probabilities beside a state

Two servers never run at once: they take turns, block by block, in an order that turns too. The
ratios are of the median wall times of all rounds; their spread is from the least to the most of the
ratios of the medians of two blocks that follow each other.

Run it alone on the machine: make bench, or make bench MODEL=ORG/NAME ARGS="--dtype bfloat16"
(flags of vLLM for both servers)
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import httpx
from serving import engine_settings, running, write_probes

from qprobe_server.default_model import prepare_default_model

Json = dict[str, Any]
Program = Literal["vllm", "qprobe"]
# Seconds of each kind of request, a list for each block.
Times = dict[str, list[list[float]]]

NAME = "bench"
NUM_TOKENS = 64
PROMPT = "Task {number}. Write a Python function `add(a, b)` that returns the sum of a and b.\n"
MIX = {"one": 0.4, "two": 0.3, "three": 0.2, "four": 0.1}
SCHEDULE = [{"tokens": 16, "keep": 8}, {"tokens": 32, "keep": 2}]


@dataclass(frozen=True)
class Kind:
    """A kind of request; reranked if it has ``q_probe``."""

    k: int
    q_probe: Json | None = None
    stream: bool = False

    def body(self, number: int) -> Json:
        """Return the request of that number, which has a prompt of its own."""
        body: Json = {
            "model": NAME,
            "prompt": PROMPT.format(number=number),
            "seed": number,
            "temperature": 0.8,
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "n": self.k if self.q_probe is None else 1,
        }
        if self.q_probe is not None:
            body["q_probe"] = {"k": self.k, "beta": 0.1, "schedule": "off", **self.q_probe}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def by_one(k: int, **fields: Any) -> Kind:
    """Return a request that one probe reranks."""
    return Kind(k, {"probe": "one", **fields})


KINDS = {
    **{f"n = {k}": Kind(k) for k in (4, 16, 48)},
    "n = 16, streamed": Kind(16, stream=True),
    **{f"k = {k}": by_one(k) for k in (4, 16, 48)},
    "k = 16, streamed": Kind(16, {"probe": "one"}, stream=True),
    "k = 16, a mix of 4": Kind(16, {"probe": MIX}),
    "k = 16, early rejection": by_one(16, schedule=SCHEDULE),
}
LOGPROBS = {f"k = {k}, log-probabilities": Kind(k, {"probe": "five"}) for k in (4, 16, 48)}


def ask(client: httpx.Client, kind: Kind, number: int) -> float:
    """Ask, read all of the answer, and return the seconds that it took."""
    body = kind.body(number)
    begun_s = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as reply:
        data = reply.read()
    seconds = time.perf_counter() - begun_s
    if reply.status_code != 200:
        raise SystemExit(f"{reply.status_code} to {body}: {data.decode()[:500]}")
    check_tokens(kind, data)
    return seconds


def check_tokens(kind: Kind, data: bytes) -> None:
    """Check that as many tokens were sampled as the comparison says."""
    lines = data.decode().split("\n\n")
    last = json.loads(lines[-3].removeprefix("data: ")) if kind.stream else json.loads(data)
    if kind.q_probe is None:
        assert last["usage"]["completion_tokens"] == kind.k * NUM_TOKENS
    elif "schedule" not in kind.q_probe:
        assert last["q_probe"]["results"][0]["sampled_tokens"] == kind.k * NUM_TOKENS


def run_block(
    program: Program, kinds: Mapping[str, Kind], flags: list[str], rounds: int, log: Path
) -> dict[str, list[float]]:
    """Start a server, warm it up, and return the seconds of each kind's rounds."""
    names = list(kinds)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with (
        running(program, flags, log) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        for name in names:
            ask(client, kinds[name], 100 + names.index(name))
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                # The same prompts and seeds in every block, and none twice in one.
                which = 1000 + number * len(names) + names.index(name)
                seconds[name].append(ask(client, kinds[name], which))
    return seconds


def measure(
    kinds: Mapping[str, Kind],
    flags: Mapping[Program, list[str]],
    rounds: int,
    blocks: int,
    out: Path,
) -> Times:
    """Return the times of the blocks; ``plain`` before the kinds of ``vllm serve``."""
    times: Times = {}
    programs: tuple[Program, Program] = ("vllm", "qprobe")
    bare = {name: kind for name, kind in kinds.items() if kind.q_probe is None}
    for block in range(blocks):
        for program in programs if block % 2 == 0 else programs[::-1]:
            begun_s = time.monotonic()
            log = out.with_name(f"{out.stem}-{program}.log")
            some = kinds if program == "qprobe" else bare
            found = run_block(program, some, flags[program], rounds, log)
            for name, seconds in found.items():
                key = f"plain {name}" if program == "vllm" else name
                times.setdefault(key, []).append(seconds)
            sys.stderr.write(f"block {block + 1}, {program}: {time.monotonic() - begun_s:.0f} s\n")
    return times


def compare(times: Times, name: str, with_name: str) -> Json:
    """Return the ratio of two kinds' medians, and the least and the most of the blocks' ratios."""
    both = [times[each] for each in (name, with_name)]
    above, below = (statistics.median(chain.from_iterable(each)) for each in both)
    ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(*both, strict=True)]
    return {
        "ratio": above / below,
        "least": min(ratios),
        "most": max(ratios),
        "median_s": above,
        "bare_median_s": below,
        "rounds": sum(map(len, both[0])),
        "blocks": len(ratios),
    }


def find_size(model: str) -> dict[str, int]:
    """Return what a probe of a model has to know."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return {"hidden_size": config.hidden_size, "num_layers": config.num_hidden_layers}


def describe_machine() -> str:
    """Return the accelerator's name, or the processor's with its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def show(results: dict[str, dict[str, Json]]) -> str:
    """Return the table."""
    lines = [f"{'wall time over':26}{'plain vLLM':>24}{'not reranked':>24}{'s':>8}{'n':>4}"]
    for name, found in results.items():
        cells = [
            f"{each['ratio']:10.3f} ({each['least']:.2f} to {each['most']:.2f})"
            if (each := found.get(arm))
            else ""
            for arm in ("plain", "not_reranked")
        ]
        first = found["plain"]
        lines.append(
            f"{name:26}{cells[0]:>24}{cells[1]:>24}{first['median_s']:8.2f}{first['rounds']:4}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is not known here is vLLM's
    )
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind in a block")
    parser.add_argument("--blocks", type=int, default=3, help="of each server")
    parser.add_argument("--logprobs", action="store_true", help="a probe that reads them, too")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args, others = parser.parse_known_args()
    model = args.model or str(prepare_default_model())
    probes = write_probes(args.out.parent / "bench-probes", **find_size(model))
    both = [model, "--served-model-name", NAME, "--max-model-len", "2048", *engine_settings()]
    loaded = ["--allow-model-mismatch"]
    loaded += [word for name, path in probes.items() for word in ("--probe", f"{name}={path}")]
    kinds = {**KINDS, **(LOGPROBS if args.logprobs else {})}
    # Each reranked kind, and what it is compared with.
    compared = {
        name: f"n = {kind.k}" + (", streamed" if kind.stream else "")
        for name, kind in kinds.items()
        if kind.q_probe is not None
    }
    times = measure(
        kinds,
        {"vllm": [*both, *others], "qprobe": [*both, *others, *loaded]},
        args.rounds,
        args.blocks,
        args.out,
    )
    results = {
        name: {
            "plain": compare(times, name, f"plain {bare}"),
            "not_reranked": compare(times, name, bare),
        }
        for name, bare in compared.items()
    }
    for bare in dict.fromkeys(compared.values()):
        results[f"not reranked, {bare}"] = {"plain": compare(times, bare, f"plain {bare}")}
    about = {"machine": describe_machine(), "model": Path(model).name, "flags": both[1:] + others}
    report = {**about, "tokens": NUM_TOKENS, "results": results, "seconds": times}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))
    sys.stdout.write(f"{about['machine']}; {about['model']}; {NUM_TOKENS} tokens a sample\n")
    sys.stdout.write(show(results))


if __name__ == "__main__":
    main()
