"""Probes, registries and the command, for tests without an engine."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe
from qprobe.probe.values import Layer, Pooling
from qprobe_server.library.registry import ProbeRegistry, ServedProbe, read_probe

Json = dict[str, Any]
MakeProbe = Callable[..., Path]


@pytest.fixture
def make_probe(tmp_path: Path) -> MakeProbe:
    """Return a function that writes a probe's file; keywords override fields of its header."""

    def make(
        name: str,
        *,
        layer: Layer = 3,
        pooling: Pooling = "mean",
        window: int | None = None,
        **fields: Any,
    ) -> Path:
        info: dict[str, Any] = {
            "base_model": "org/model",
            "hidden_size": 4,
            "num_layers": 6,
            "objective": "ce",
            "k": 16,
            "beta": 0.1,
        }
        made = ProbeInfo(**{**info, **fields})

        def ones(reading: Reading) -> Terms:
            return Terms.linear(reading, np.ones(made.hidden_size))

        path = tmp_path / f"{name}.safetensors"
        heads = {each: ones(Reading(layer, "mean", each)) for each in made.checkpoints}
        save_probe(Probe(made, ones(Reading(layer, pooling, window)), heads), path)
        return path

    return make


Serve = Callable[[ProbeRegistry, str, Path], ServedProbe]


def serve_probe(registry: ProbeRegistry, name: str, path: Path) -> ServedProbe:
    """Serve a file as a server does, but for the workers."""
    served = registry.reserve(read_probe(name, path.read_bytes()))
    registry.publish(served)
    return served


@pytest.fixture
def serve() -> Serve:
    """Return the function above."""
    return serve_probe


@pytest.fixture
def registry(make_probe: MakeProbe) -> ProbeRegistry:
    """Return a registry of ``good`` (k 16, beta 0.1) and ``kind`` (k 8, beta 0.5)."""
    loaded = ProbeRegistry()
    serve_probe(loaded, "good", make_probe("good"))
    serve_probe(loaded, "kind", make_probe("kind", k=8, beta=0.5, layer="final"))
    return loaded


_QPROBE = str(Path(sys.executable).with_name("qprobe"))


class Ran(NamedTuple):
    """A command that ended.

    Attributes:
        status: Of its exit.
        out: What it printed.
        err: Likewise, on the other stream.
        heavy: Which of torch and vllm it imported.
    """

    status: int
    out: str
    err: str
    heavy: set[str]


@pytest.fixture
def run_qprobe() -> Callable[..., Ran]:
    """Return a function that runs the real command and takes its arguments."""
    return _run_qprobe


def _run_qprobe(*args: object) -> Ran:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", _QPROBE, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stderr.splitlines(keepends=True)
    imports = [line for line in lines if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in imports}
    err = "".join(line for line in lines if not line.startswith("import time:"))
    return Ran(done.returncode, done.stdout, err, modules & {"torch", "vllm"})


@dataclass
class Played:
    """A server that answers by ``play(request, number)``: a reply, or (status, headers, body)."""

    play: Callable[[Json, int], Any]
    requests: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def playing() -> Iterator[Callable[[Callable[[Json, int], Any]], Played]]:
    """Return a function that starts such a server."""
    with contextlib.ExitStack() as stack:

        def start(play: Callable[[Json, int], Any]) -> Played:
            played = Played(play)

            class Handler(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    played.requests.append(body)
                    played.headers.append({k.lower(): v for k, v in self.headers.items()})
                    played.paths.append(self.path)
                    answer = played.play(body, len(played.requests))
                    status, headers, data = (
                        answer if isinstance(answer, tuple) else (200, {}, answer)
                    )
                    if status == 0:
                        self.connection.close()
                        return
                    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                    self.send_response(status)
                    for name, value in {**headers, "content-length": str(len(raw))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(raw)

                def log_message(self, *_: object) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            played.url = f"http://127.0.0.1:{server.server_port}/v1"
            return played

        yield start
