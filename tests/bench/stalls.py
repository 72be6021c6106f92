"""How long the API server's event loop is held while long answers are given.

One server as a user starts it, with a heart beating on its event loop every 2 ms. At the same time
four streams of 2,000 tokens are read, two of them with logprobs, and one reply that shows 32
candidates of 1,024 tokens with the score of each token. A gap is the time between two beats beyond
the 2 ms: by the clock, which counts what the system gives to other processes, and in processor time
of the loop's thread. For the longest the script says what the thread was doing.

Run it with a model's folder: python tests/bench/stalls.py MODEL
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe

BEAT_S = 0.002
NOTED_S = 0.02
START_TIMEOUT_S = 300
Json = dict[str, Any]


class Heart:
    """Notes every gap of the loop it beats on, one JSON line each.

    Args:
        path: Where to.
    """

    def __init__(self, path: Path) -> None:
        self._out = path.open("w", buffering=1)
        self._last_s = time.monotonic()
        self._where = ""
        self._thread = threading.get_ident()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """See what the thread does when a beat is late."""
        while True:
            time.sleep(NOTED_S / 4)
            if time.monotonic() - self._last_s > NOTED_S and not self._where:
                frame = sys._current_frames()[self._thread]
                self._where = " < ".join(
                    f"{each.name}:{each.lineno}" for each in traceback.extract_stack(frame)[:-12:-1]
                )

    async def beat(self) -> None:
        """Beat for ever."""
        while True:
            self._last_s, cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(BEAT_S)
            now_s = time.monotonic()
            gap_s = now_s - self._last_s - BEAT_S
            if gap_s > NOTED_S:
                noted = {"at": now_s, "gap": gap_s, "cpu": time.thread_time() - cpu_s}
                self._out.write(json.dumps({**noted, "where": self._where}) + "\n")
            self._where = ""


def serve(path: Path, argv: Sequence[str]) -> None:
    """Be the server, with a heart."""
    from qprobe_server import cli
    from qprobe_server.vllm_backend import app

    begin = app._serve

    async def serve_with_heart(*args: Any) -> None:
        beating = asyncio.create_task(Heart(path).beat())
        try:
            await begin(*args)
        finally:
            beating.cancel()

    app._serve = serve_with_heart  # type: ignore[assignment]  # takes all that the other does
    sys.argv = ["qprobe", *argv]
    cli.main()


def write_probe(path: Path, model: Path) -> None:
    """Write a probe of the final layer; what it scores does not matter."""
    config = json.loads((model / "config.json").read_text())
    info = ProbeInfo(
        base_model=model.name,
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        objective="ce",
        k=2,
        beta=0.1,
    )
    terms = Terms.linear(Reading("final", "mean"), torch.ones(info.hidden_size))
    save_probe(Probe(info, terms), path)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for /health."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    sys.exit("the server did not start")


def ask(url: str, body: Json) -> int:
    """Read an answer to its end; returns its bytes."""
    count = 0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=None) as reply:
        reply.raise_for_status()
        for part in reply.iter_bytes():
            count += len(part)
    return count


def make_bodies(tokens: int, shown_tokens: int) -> list[Json]:
    """Return the requests."""
    common = {
        "model": "m",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "ignore_eos": True,
    }
    streams = [
        {**common, "stream": True, "max_tokens": tokens, "seed": index, "q_probe": {"k": 2}}
        for index in range(4)
    ]
    for each in streams[2:]:
        each |= {"logprobs": True, "top_logprobs": 5}
    shown = {"k": 32, "return_token_scores": True}
    return [*streams, {**common, "max_tokens": shown_tokens, "q_probe": shown}]


def measure(model: Path, tokens: int, shown_tokens: int) -> list[Json]:
    """Start the server, ask, and return the gaps since it was ready, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        gaps, probe = Path(folder, "gaps"), Path(folder, "p.safetensors")
        write_probe(probe, model)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [
            *("serve", str(model), "--served-model-name", "m", "--probe", f"p={probe}"),
            *("--default-probe", "p", "--max-model-len", str(tokens + 64), "--enforce-eager"),
            *("--allow-model-mismatch", "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--block-size", "32"),
        ]
        # No session of its own: Linux shares the processors by session first.
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(gaps), *argv],
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
            stdout=sys.stderr,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(url, process)
            bodies = make_bodies(tokens, shown_tokens)
            for each in bodies:
                ask(url, {**each, "max_tokens": 4})  # what is made once
            ready_s = time.monotonic()
            with ThreadPoolExecutor(len(bodies)) as pool:
                sizes = list(pool.map(lambda each: ask(url, each), bodies))
            sys.stderr.write(f"bytes of the answers: {sizes}\n")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        found = [json.loads(line) for line in gaps.read_text().splitlines()]
    return sorted((each for each in found if each["at"] > ready_s), key=lambda each: -each["gap"])


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--shown-tokens", type=int, default=1024)
    args = parser.parse_args()
    found = measure(args.model, args.tokens, args.shown_tokens)
    for each in found[:10]:
        gap, cpu = (round(1000 * each[name], 1) for name in ("gap", "cpu"))
        sys.stdout.write(f"{gap} ms, of these {cpu} ms processor: {each['where']}\n")
    longest = {name: max((each[name] for each in found), default=0.0) for name in ("gap", "cpu")}
    sys.stdout.write(json.dumps({f"longest_{name}_s": each for name, each in longest.items()}))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
