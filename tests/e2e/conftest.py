"""One real server process for the whole run, started as a user starts it, with the small model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qprobe import Probe, ProbeInfo, Reading, Terms, load_probe, save_probe
from qprobe.probe.confidence import Confidence, Platt
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe.probe.values import Layer, Pooling
from qprobe_server.default_model import SERVED_NAME

START_TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Where it listens.
        key: The API key that it wants.
        admin_key: Opens the routes that change probes.
        process: Its main process.
        log: What it has printed.
    """

    url: str
    key: str
    admin_key: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, **options: object) -> httpx.Client:
        """Return an HTTP client with the key; it keeps no connection, so it need not be closed."""
        headers = {"authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, limits=limits)

    def wait_until_running(self, count: int = 1) -> None:
        """Wait until the engine works at so many candidates."""
        running = re.compile(r"^vllm:num_requests_running\{.*\} ([0-9.]+)", re.MULTILINE)
        deadline = time.monotonic() + 30
        while sum(map(float, running.findall(self.client().get("/metrics").text))) < count:
            assert time.monotonic() < deadline, "the request never ran"
            time.sleep(0.05)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(log: Path, *flags: str, command: str = "serve", **variables: str) -> Iterator[Server]:
    """Start a server with flags, wait until it is healthy, and stop it afterwards.

    The command is ``serve`` or ``proxy``. Variables are those of its environment; an empty
    QPROBE_ADMIN_API_KEY is none.
    """
    port, key = free_port(), "secret-key-of-the-tests"
    admin_key = "secret-admin-key-of-the-tests"
    words = [
        str(Path(sys.executable).with_name("qprobe")),
        command,
        *flags,
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", key),
    ]
    # No session of its own: Linux shares the processors by session first (autogroup), and one
    # whose engine spins, as vLLM's does between steps, can leave the clients here without any.
    with log.open("wb") as sink:
        process = subprocess.Popen(
            words,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, "QPROBE_ADMIN_API_KEY": admin_key, **variables},
        )
    server = Server(f"http://127.0.0.1:{port}", key, admin_key, process, log)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(server: Server) -> None:
    """Wait for /health; fails with the log's end if the process ends first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("the server did not start:\n" + server.log.read_text()[-3000:])


MakeProbe = Callable[..., Path]
SHIPPED = Path(str(resources.files("qprobe") / "shipped"))
# From the layers of the shipped probes to the small model's; each probe's stay apart.
MOVED_TO: dict[object, Layer] = {10: 2, 15: "final", 20: 4, 22: "final"}


@pytest.fixture(scope="session")
def make_probe(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> MakeProbe:
    """Return a function that writes a random probe for the small model."""

    def make(
        name: str,
        *,
        layer: Layer = 4,
        pooling: Pooling = "mean",
        window: int | None = None,
        **fields: object,
    ) -> Path:
        info: dict[str, object] = {
            "base_model": small_model.name,
            "hidden_size": 576,
            "num_layers": 6,
            "objective": "ce",
            "k": 4,
            "beta": 0.1,
        }
        made = ProbeInfo(**{**info, **fields})  # type: ignore[arg-type]  # checked when it is made
        torch.manual_seed(len(name))
        weight = torch.randn(made.hidden_size).numpy() / made.hidden_size**0.5
        path = tmp_path_factory.mktemp("probes") / f"{name}.safetensors"
        save_probe(Probe(made, Terms.linear(Reading(layer, pooling, window), weight)), path)
        return path

    return make


@pytest.fixture(scope="session")
def sure_file(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a probe of states, a gate and log-probabilities that has a confidence."""
    rng = np.random.default_rng(3)
    weights = [(rng.standard_normal(576) / 24).astype(np.float32) for _ in range(4)]
    states = [Reading(4, "mean"), Reading("final", "last")]
    terms = Terms(
        tuple(StateTerm(each, weights.pop()) for each in states),
        (GateTerm(2, (), weights.pop(), weights.pop()),),
        {"mean_logprob": 1.0, "length": 0.01, "cut": -1.0},
    )
    own = Terms(numbers={"mean_logprob": 1.0})
    info = ProbeInfo(
        base_model=small_model.name,
        hidden_size=576,
        num_layers=6,
        objective="ce",
        k=4,
        beta=0.1,
    )
    path = tmp_path_factory.mktemp("probes") / "sure.safetensors"
    save_probe(Probe(info, terms, confidence=Confidence(Platt(1.0, 0.5), own)), path)
    return path


@pytest.fixture
def sure(server: Any, sure_file: Path) -> Iterator[str]:
    """Serve a probe that has a confidence, no longer than a test runs; give its name."""
    admin = {"authorization": f"Bearer {server.admin_key}"}
    put = server.client().put("/v1/probes/sure", content=sure_file.read_bytes(), headers=admin)
    assert put.status_code == 201, put.text
    yield "sure"
    server.client().delete("/v1/probes/sure", headers=admin)


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Return a function that writes a LoRA adapter for the small model: random, of a seed.

    As peft writes it, for two of the projections of attention and one of the MLP.
    """
    shapes = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192)}
    shapes["mlp.down_proj"] = (1536, 576)
    rank, names = 4, [name.rpartition(".")[2] for name in shapes]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": names}

    def make(name: str, seed: int) -> Path:
        folder = tmp_path_factory.mktemp("adapters") / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for layer in range(6):
            for part, (wide_in, wide_out) in shapes.items():
                prefix = f"base_model.model.model.layers.{layer}.{part}"
                for side, shape in (("A", (rank, wide_in)), ("B", (wide_out, rank))):
                    random = torch.randn(shape, generator=generator)
                    weights[f"{prefix}.lora_{side}.weight"] = 0.1 * random
        save_file(weights, folder / "adapter_model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def read_merged(small_model: Path) -> Callable[[Path | None], Any]:
    """Return a function that loads transformers' small model with an adapter merged by hand.

    That is W + B A * alpha / r; None is the model itself. What a server is compared with.
    """
    from transformers import AutoModelForCausalLM

    def read(adapter: Path | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
        if adapter is None:
            return model
        config = json.loads((adapter / "adapter_config.json").read_text())
        weights = load_file(adapter / "adapter_model.safetensors")
        for name in [each for each in weights if ".lora_A." in each]:
            place = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            change = weights[name.replace(".lora_A.", ".lora_B.")] @ weights[name]
            merged = model.get_submodule(place).weight
            merged.data += change * config["lora_alpha"] / config["r"]
        return model

    return read


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Return the folder of the shipped probes, said to read layers of the small model."""
    folder = tmp_path_factory.mktemp("shipped")
    for path in SHIPPED.iterdir():
        probe = load_probe(path)
        info = replace(probe.info, base_model=small_model.name, num_layers=6)
        heads = {tokens: _move(terms) for tokens, terms in probe.heads.items()}
        sure = probe.confidence
        if sure is not None and sure.terms is not None:
            sure = replace(sure, terms=_move(sure.terms))
        save_probe(Probe(info, _move(probe.terms), heads, sure), folder / path.name)
    return folder


@pytest.fixture(scope="session")
def serve_small(small_model: Path) -> list[str]:
    """Return the arguments of a server of the small model, under the default model's name."""
    model = [str(small_model), "--served-model-name", SERVED_NAME]
    return [*model, "--dtype", "float32", "--enforce-eager", "--block-size", "32"]


@pytest.fixture(scope="session")
def free() -> Callable[[], int]:
    """Return the function that finds a port."""
    return free_port


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """Return the function that starts one."""
    return running


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    make_probe: MakeProbe,
    shipped: Path,
    serve_small: list[str],
) -> Iterator[Server]:
    """Serve the small model with a shipped probe and two random ones; uploads are kept."""
    flags = [
        *serve_small,
        *("--probe", f"python={shipped / 'python.safetensors'}"),
        *("--probe", f"end={make_probe('end', layer='final', pooling='last')}"),
        *("--probe", f"early={make_probe('early', layer=2, window=8)}"),
        *("--probe-layers", "2,4,final", "--probe-dir", str(tmp_path_factory.mktemp("kept"))),
        *("--json-access-log", "--enable-scale-out"),
        *("--allow-code-execution", "--code-queue", "2"),
        "--enable-auto-tool-choice",
        *("--tool-call-parser", "hermes"),
        *("--sse-keep-alive-interval", "1"),
        # So small a model fills the white space that JSON allows until it is cut off.
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with running(log, *flags, VLLM_CPU_KVCACHE_SPACE="1") as started:
        yield started


def _move(terms: Terms) -> Terms:
    """Return a sum over layers that the small model has instead of the default model's."""
    moved = [
        replace(each, reading=replace(each.reading, layer=MOVED_TO[each.reading.layer]))
        for each in terms.states
    ]
    return replace(terms, states=tuple(moved))
