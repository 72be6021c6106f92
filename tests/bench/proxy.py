"""What the proxy costs, in its light form, before an upstream that answers at once.

overhead        k = 16, reranked by embeddings: from the request to its answer, less the time
                from the first candidate that the upstream sees to the last that it answers, less
                the endpoint's own time
pass-through    requests without a probe, 32 at a time: through the proxy, and through a plain
                reverse proxy of the same libraries (FastAPI, httpx, uvicorn), in turn; by the
                clock, and by the processor time of the proxy's process, which other work on the
                machine does not lengthen

The upstream, the endpoint, the proxies and the clients share the machine. Run it alone:
python tests/bench/proxy.py
"""

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from proxy_servers import DIMENSIONS

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe
from qprobe.probe.probe import Endpoint

Json = dict[str, Any]

K, CLIENTS = 16, 32
CHAT: Json = {"model": "m", "messages": [{"role": "user", "content": "A question? " * 20}]}
_SERVERS = [sys.executable, str(Path(__file__).with_name("proxy_servers.py"))]
_QPROBE = [str(Path(sys.executable).with_name("qprobe"))]


@dataclass(frozen=True)
class Server:
    """A server that listens, and its process."""

    url: str
    process: psutil.Process


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[Server]:
    """Run a server on a port until the block ends."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        else:
            raise SystemExit(f"a server did not start: {log}")
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def write_probe(path: Path) -> None:
    info = ProbeInfo(
        base_model="e",
        hidden_size=DIMENSIONS,
        num_layers=1,
        objective="ce",
        k=K,
        beta=0.1,
        endpoint=Endpoint(template="{prompt}{completion}", normalize=False),
    )
    weight = np.random.default_rng(0).normal(size=DIMENSIONS)
    save_probe(Probe(info, Terms.linear(Reading("embedding", "mean"), weight)), path)


async def measure_overhead(upstream: str, proxy: str, *, requests: int) -> list[float]:
    """Return for each request what the proxy took beyond candidates and endpoint, in ms."""
    found = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(requests):
            await client.get(f"{upstream}/taken")
            begun_s = time.monotonic()
            body = {**CHAT, "q_probe": {"probe": "p", "k": K}}
            reply = await client.post(f"{proxy}/v1/chat/completions", json=body)
            total_s = time.monotonic() - begun_s
            assert len(reply.json()["q_probe"]["results"][0]["scores"]) == K
            taken = (await client.get(f"{upstream}/taken")).json()
            sampled_s = max(taken["chat"]) - min(taken["chat"])
            read_s = taken["embeddings"][1] - taken["embeddings"][0]
            found.append((total_s - sampled_s - read_s) * 1e3)
    return found


async def measure_rate(server: Server, *, requests: int) -> tuple[float, float]:
    """Return how many requests pass, a second and a second of the server's processor time.

    The clients cost next to nothing.
    """
    raw = json.dumps(CHAT).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    asked = head.encode() + raw
    port = int(server.url.rpartition(":")[2])

    async def ask_often() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests // CLIENTS):
            writer.write(asked)
            reply = await reader.readuntil(b"\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 200"), reply
            (length,) = [
                int(line.partition(b":")[2])
                for line in reply.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ]
            await reader.readexactly(length)
        writer.close()

    before, begun_s = server.process.cpu_times(), time.monotonic()
    await asyncio.gather(*(ask_often() for _ in range(CLIENTS)))
    seconds, after = time.monotonic() - begun_s, server.process.cpu_times()
    busy_s = after.user + after.system - before.user - before.system
    passed = requests // CLIENTS * CLIENTS
    return passed / seconds, passed / busy_s


def measure(upstream: Server, proxy: Server, plain: Server, args: argparse.Namespace) -> Json:
    """Return the rounds of everything, the proxies in turn."""
    rates: dict[str, list[tuple[float, float]]] = {"proxy": [], "plain": []}
    overhead: list[float] = []
    for number in range(args.rounds + 1):
        found = {
            name: asyncio.run(measure_rate(server, requests=args.requests))
            for name, server in (("proxy", proxy), ("plain", plain))
        }
        spent = asyncio.run(measure_overhead(upstream.url, proxy.url, requests=args.reranked))
        if number:  # the first warms up
            overhead += spent
            for name, rate in found.items():
                rates[name].append(rate)
    return {"overhead_ms": overhead, "rates": rates}


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, and what lies least and most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def show(results: Json) -> str:
    """Return the figures in words."""
    lines = [f"overhead, k = {K}: {spread(results['overhead_ms'], '.1f')} ms"]
    for index, by in enumerate(("second", "second of its processor time")):
        proxy, plain = (
            [each[index] for each in results["rates"][name]] for name in results["rates"]
        )
        ratios = [a / b for a, b in zip(proxy, plain, strict=True)]
        medians = statistics.median(proxy) / statistics.median(plain)
        lines += [
            f"passed a {by}: {spread(proxy, ',.0f')}, plain {spread(plain, ',.0f')}",
            f"    ratio of medians {medians:.2f}, by rounds {spread(ratios, '.2f')}",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=256, help="passed through in a round")
    parser.add_argument("--reranked", type=int, default=8, help="likewise")
    parser.add_argument("--out", type=Path, default=Path("build/bench-proxy.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    probe = args.out.with_name("bench-proxy.safetensors")
    write_probe(probe)

    def log(name: str) -> Path:
        return Path(args.out.with_name(f"{args.out.stem}-{name}.log"))

    ports = [find_port() for _ in range(3)]
    url = f"http://127.0.0.1:{ports[0]}/v1"
    ours = [*_QPROBE, "proxy", "--upstream", url, "--embeddings", url, "--embedding-model", "e"]
    ours += ["--probe", f"p={probe}", "--host", "127.0.0.1", "--port", str(ports[1])]
    plain = [*_SERVERS, "plain", str(ports[2]), f"http://127.0.0.1:{ports[0]}"]
    with (
        running([*_SERVERS, "upstream", str(ports[0])], ports[0], log("upstream")) as upstream,
        running(ours, ports[1], log("proxy")) as proxy,
        running(plain, ports[2], log("plain")) as beside,
    ):
        results = measure(upstream, proxy, beside, args)
    args.out.write_text(json.dumps(results, indent=1))
    sys.stdout.write(show(results))


if __name__ == "__main__":
    main()
