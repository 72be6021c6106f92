"""Servers to measure: plain ``vllm serve`` and ``qprobe serve`` with the same settings."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import httpx
import psutil
import torch

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe
from qprobe.probe.values import NUMBERS, Layer

__all__ = ["CHECKPOINTS", "Server", "engine_settings", "running", "write_probes"]

CHECKPOINTS = (16, 32)
_COMMANDS = {
    "vllm": [sys.executable, str(Path(__file__).with_name("plain_vllm.py"))],
    "qprobe": [str(Path(sys.executable).with_name("qprobe"))],
}
_STOP_S = 60


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: Where it listens.
        api_process: The one that speaks HTTP.
    """

    url: str
    api_process: psutil.Process


def engine_settings() -> list[str]:
    """Return flags that make plain vLLM's engine the one that ``qprobe serve`` chooses by itself.

    That differs on CPUs only; and the cache, which qprobe fits to the machine, is 2 GiB here.
    """
    from vllm.platforms import current_platform

    from qprobe_server.vllm_backend.cpu import choose_dtype

    if not current_platform.is_cpu():
        return []
    cache = ["--kv-cache-memory-bytes", str(2 << 30), "--block-size", "32"]
    return ["--enforce-eager", "--dtype", choose_dtype(), *cache]


@contextmanager
def running(
    program: Literal["vllm", "qprobe"], flags: Sequence[str], log: Path
) -> Iterator[Server]:
    """Start a server, wait until it is healthy, and stop it with all its processes afterwards.

    Raises:
        SystemExit: It ended before.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*_COMMANDS[program], "serve", *flags, "--host", "127.0.0.1", "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        yield Server(url, psutil.Process(process.pid))
    finally:
        _stop(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"the server did not start: {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Also what a server that died may have left: two engines at once spoil each other's times."""
    mine = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(mine, timeout=5)
    for each in left:
        each.kill()


def write_probes(folder: Path, *, hidden_size: int, num_layers: int) -> dict[str, Path]:
    """Write four random probes of two inner layers and the last state, with heads; by their names.

    A fifth reads the five numbers beside a state. What one costs does not depend on its weights.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(layer: Layer, window: int | None = None) -> Terms:
        weight = torch.randn(hidden_size, generator=generator) / hidden_size**0.5
        return Terms.linear(Reading(layer, "mean", window), weight)

    first, second = max(1, num_layers // 2), max(1, 2 * num_layers // 3)
    layers: dict[str, Layer] = {"one": second, "two": second, "three": first, "four": "final"}
    layers["five"] = second
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, layer in layers.items():
        info = ProbeInfo(
            base_model="bench",
            hidden_size=hidden_size,
            num_layers=num_layers,
            objective="ce",
            k=16,
            beta=0.1,
            checkpoints=CHECKPOINTS,
        )
        paths[name] = folder / f"{name}.safetensors"
        heads = {each: draw(layer, each) for each in CHECKPOINTS}
        numbers = dict.fromkeys(NUMBERS, 0.1) if name == "five" else {}
        save_probe(Probe(info, replace(draw(layer), numbers=numbers), heads), paths[name])
    return paths
