"""From an API to a proxy: collected, trained, served; read by a model here, and by an endpoint.

The upstream is the session's server. Beside it run vLLM's pooling engine, and then, one at a time,
the reader of a collection and the one of a proxy: two small engines at once, as in earnest.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qprobe import Reading, load_probe
from qprobe.data.dataset import Dataset
from qprobe_server.default_model import SERVED_NAME

BIN = Path(sys.executable).parent
PLAIN_VLLM = Path(__file__).parents[1] / "bench" / "plain_vllm.py"
N, SEED = 4, 7
ENGINE = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "512")
QUESTIONS = ("What is a volcano?", "Name three colours.", "Say hello.", "Is fire hot?")
CHAT = "/v1/chat/completions"
EMBEDDER = "small-embedder"


@contextmanager
def running(command: Sequence[str], log: Path, url: str, **variables: str) -> Iterator[None]:
    """Run a server until the block ends; waits until it is healthy."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables},
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture(scope="module")
def embeddings(
    small_model: Path, free: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve the small model's embeddings by vLLM alone; give their address."""
    url = f"http://127.0.0.1:{(port := free())}"
    command = [sys.executable, str(PLAIN_VLLM), "serve", str(small_model), "--runner", "pooling"]
    command += ["--convert", "embed", "--served-model-name", EMBEDDER, "--port", str(port)]
    with running([*command, *ENGINE], tmp_path_factory.mktemp("pooling") / "log", url):
        yield f"{url}/v1"


@pytest.fixture
def collect(server: Any, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that collects from the server, read as the flags say, and loads that."""
    rows = [{"messages": [{"role": "user", "content": each}]} for each in QUESTIONS]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    reward = tmp_path / "reward.py"
    reward.write_text("def score(row, completion):\n    return min(1.0, len(completion) / 200)\n")

    def run(*flags: str) -> Dataset:
        call(
            *("collect", str(path), "-o", str(tmp_path / "data"), *flags),
            *("--upstream", f"{server.url}/v1", "--upstream-model", SERVED_NAME),
            *("--reward", f"python:{reward}:score", "--n", str(N), "--seed", str(SEED)),
            *("--max-tokens", "24", "--temperature", "1"),
            QPROBE_UPSTREAM_API_KEY=server.key,
        )
        return Dataset.load(tmp_path / "data")

    return run


def call(*arguments: str, **variables: str) -> None:
    """Run a command of ours to its end."""
    done = subprocess.run(
        [str(BIN / "qprobe"), *arguments],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def sweep(folder: Path) -> Path:
    """Train on a dataset; return the probe."""
    given = ("--objectives", "mse", "--folds", "2", "--test-fraction", "0.25")
    call("sweep", str(folder / "data"), "-o", str(folder / "runs"), *given)
    return folder / "runs" / "probe.safetensors"


@contextmanager
def proxy(server: Any, port: int, log: Path, *flags: str) -> Iterator[str]:
    """Run a proxy before the server; give its address."""
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "qprobe"), "proxy", "--upstream", f"{server.url}/v1", *flags]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, log, url, QPROBE_UPSTREAM_API_KEY=server.key):
        yield url


def ask(url: str, headers: dict[str, str], **own: Any) -> Any:
    body = {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        "seed": SEED,
        "max_tokens": 24,
        "temperature": 1,
        "q_probe": {"probe": "mine", "k": 4, "beta": 0, "return_candidates": True, **own},
    }
    reply = httpx.post(f"{url}{CHAT}", json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    (result,) = reply.json()["q_probe"]["results"]
    return result


def test_an_endpoint_reads(
    server: Any,
    embeddings: str,
    collect: Callable[..., Dataset],
    free: Callable[[], int],
    tmp_path: Path,
) -> None:
    """The dataset's vectors are the endpoint's; the proxy chooses the best by them."""
    flags = ("--embeddings", embeddings, "--embedding-model", EMBEDDER)
    data = collect(*flags)
    assert len(data.samples) == len(QUESTIONS) * N
    vectors = data.features(Reading.parse("embedding")).numpy()
    assert vectors.shape == (len(QUESTIONS) * N, 576)
    texts = [f"user: {QUESTIONS[each.prompt]}\n\nassistant: {each.text}" for each in data.samples]
    body = {"model": EMBEDDER, "input": texts}
    reply = httpx.post(f"{embeddings}/embeddings", json=body, timeout=60).json()
    right = np.array([each["embedding"] for each in reply["data"]])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, right, atol=2e-3)
    probe = sweep(tmp_path)
    assert load_probe(probe).info.base_model == EMBEDDER
    with proxy(server, free(), tmp_path / "log", *flags, "--probe", f"mine={probe}") as url:
        result = ask(url, {})
    assert result["selected"] == [int(np.argmax(result["scores"]))]
    assert len(result["candidates"]) == 4


def test_a_model_here_reads(
    server: Any,
    small_model: Path,
    collect: Callable[..., Dataset],
    free: Callable[[], int],
    tmp_path: Path,
) -> None:
    """The proxy scores the same answers as the server that samples, which has the probe too.

    Both sample candidate i with the seed raised by i. Batches differ, and few texts by that; and a
    text does not tell how it was sampled if the tokenizer makes other tokens of it. Scores of the
    same tokens agree as parity has it: 1e-4 of |w| |phi| each; |phi| is below 30 in this model.
    """
    flags = ("--reader", str(small_model), *ENGINE)
    data = collect(*flags, "--layers", "2,4,final", "--windows", "8")
    assert len(data.samples) == len(QUESTIONS) * N
    for each in data.samples:
        assert len(each.token_ids) == each.num_scored + 1, "a stop token, or the one after the cut"
        assert each.logprob is None
    probe = sweep(tmp_path)
    loaded = load_probe(probe)
    assert loaded.info.base_model == small_model.name
    put = server.client().put(
        "/v1/probes/mine",
        content=probe.read_bytes(),
        headers={"authorization": f"Bearer {server.admin_key}"},
    )
    assert put.status_code in (200, 201), put.text
    try:
        with proxy(server, free(), tmp_path / "log", *flags, "--probe", f"mine={probe}") as url:
            ours = ask(url, {}, return_token_scores=True)
        theirs = ask(
            server.url, {"authorization": f"Bearer {server.key}"}, return_token_scores=True
        )
    finally:
        server.client().delete(
            "/v1/probes/mine", headers={"authorization": f"Bearer {server.admin_key}"}
        )
    scores = {
        tuple(each["tokens"]): score
        for each, score in zip(theirs["candidates"], theirs["scores"], strict=True)
    }
    same = [
        (score, scores[tuple(each["tokens"])])
        for each, score in zip(ours["candidates"], ours["scores"], strict=True)
        if tuple(each["tokens"]) in scores
    ]
    assert len(same) >= 2
    bound = 2 * 1e-4 * 30 * float(np.linalg.norm(loaded.terms.states[0].weight))
    assert all(abs(one - other) <= bound for one, other in same), same
