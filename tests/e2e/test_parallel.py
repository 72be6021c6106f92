"""One model on two workers, and two copies of it: the answers of one process, and nothing left.

A random Llama of 8 heads, since the 9 of the default model cannot be halved. Each worker has one
thread of its own, so that two cores are enough.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe

pytestmark = pytest.mark.heavy

COMPLETIONS = "/v1/completions"
HIDDEN, NUM_LAYERS, VOCABULARY = 256, 4, 8192
K, NUM_TOKENS = 6, 24
# No score of a probe's weights alone comes near it, so that a score tells its version.
SHIFT = 1000.0
# Of a request as it is answered by whichever rank, and by each of two.
ANY_RANK: tuple[Mapping[str, str], ...] = ({},)
EACH_RANK = tuple({"x-data-parallel-rank": str(rank)} for rank in range(2))

# Asked of one process and of several: (model, q_probe, n).
ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "an inner layer": ("wide:inner", {"return_token_scores": True}, 1),
    "the final state, n of k": ("wide:end", {}, 3),
    "a mix": ("wide", {"probe": {"inner": 0.7, "end": 0.3}}, 1),
    "early rejection": ("wide:inner", {"schedule": [{"tokens": 8, "keep": 2}]}, 1),
}

Json = dict[str, Any]
Start = Callable[..., AbstractContextManager[Any]]


def write_probe(path: Path, reading: Reading, *, bias: float = 0.0) -> Path:
    """Write a random probe for the wide model; one of mean pooling has a head at 8 tokens."""
    torch.manual_seed(len(path.stem))
    heads = {}
    if reading.pooling == "mean":
        beginning = Reading(reading.layer, "mean", 8)
        heads[8] = Terms.linear(beginning, torch.randn(HIDDEN) / HIDDEN**0.5)
    info = ProbeInfo(
        base_model="wide",
        hidden_size=HIDDEN,
        num_layers=NUM_LAYERS,
        objective="ce",
        k=K,
        beta=0.5,
        checkpoints=tuple(heads),
    )
    terms = Terms.linear(reading, torch.randn(HIDDEN) / HIDDEN**0.5, bias)
    save_probe(Probe(info, terms, heads), path)
    return path


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Return the folder of a random Llama of 8 heads with the small model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "wide"
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=2 * HIDDEN,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        initializer_range=0.1,  # so large that the tokens before a token tell in it
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(small_model / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def serve_wide(
    tmp_path_factory: pytest.TempPathFactory, wide_model: Path, start_server: Start
) -> Callable[..., AbstractContextManager[Any]]:
    """Return a function that serves the wide model with an inner and a final probe."""
    folder = tmp_path_factory.mktemp("parallel")
    inner = write_probe(folder / "inner.safetensors", Reading(2, "mean"))
    end = write_probe(folder / "end.safetensors", Reading("final", "last"))

    def serve(*flags: str, path: str = "", **variables: str) -> AbstractContextManager[Any]:
        return start_server(
            folder / "log",
            *(str(wide_model), "--served-model-name", "wide", "--dtype", "float32"),
            *("--enforce-eager", "--block-size", "32", "--max-num-batched-tokens", "512"),
            *("--probe", f"inner={inner}", "--probe", f"end={end}"),
            *("--middleware", "held_route.HeldRoute"),
            *flags,
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            OMP_NUM_THREADS="1",
            PYTHONPATH=add_path(path, str(Path(__file__).parent)),
            **variables,
        )

    return serve


def add_path(*folders: str) -> str:
    """Return PYTHONPATH with folders before what it has."""
    return os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))


def ask(
    server: Any, headers: Mapping[str, str], model: str, asked: Json, n: int = 1, **fields: Any
) -> Any:
    """Ask for so many tokens of every candidate, with a seed."""
    body = {
        "model": model,
        "prompt": "Once upon a time there was a volcano.",
        "seed": 7,
        "n": n,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "q_probe": {"k": K, "beta": 0.5, "return_candidates": True, **asked},
        **fields,
    }
    return server.client().post(COMPLETIONS, json=body, headers=dict(headers))


def answer_all(server: Any, headers: Mapping[str, str] = ANY_RANK[0]) -> dict[str, Json]:
    """Return the replies to all that is asked, by its name."""
    replies = {}
    for name, asked in ASKED.items():
        reply = ask(server, headers, *asked)
        assert reply.status_code == 200, reply.text
        replies[name] = reply.json()
    return replies


@pytest.fixture(scope="module")
def alone(serve_wide: Start) -> dict[str, Json]:
    """Return the replies of one process, which has stopped."""
    with serve_wide() as server:
        return answer_all(server)


def check_equal(found: dict[str, Json], alone: dict[str, Json]) -> None:
    """Compare replies: the same samples and choices, scores within the rounding of float32."""
    for name, reply in found.items():
        mine, theirs = (each["q_probe"]["results"][0] for each in (reply, alone[name]))
        assert mine["selected"] == theirs["selected"], name
        assert mine.get("rejected_at") == theirs.get("rejected_at"), name
        # How far a dropped candidate came, which has no score, is a matter of time.
        left = [index for index, score in enumerate(mine["scores"]) if score is not None]
        scores, wanted = ([each["scores"][index] for index in left] for each in (mine, theirs))
        assert scores == close_to(wanted), name
        assert len(set(scores)) == len(left)
        for index in left:
            shown, expected = (each["candidates"][index] for each in (mine, theirs))
            assert shown["text"] == expected["text"], name
            token_scores = expected.get("token_scores", [])
            assert len(token_scores) == (NUM_TOKENS - 1 if name == "an inner layer" else 0)
            assert shown.get("token_scores", []) == close_to(token_scores), name
        assert len({mine["candidates"][index]["text"] for index in left}) == len(left)


def close_to(expected: Any) -> Any:
    """Compare numbers; a score of these probes is about 1."""
    return pytest.approx(expected, rel=1e-3, abs=1e-4)


def check_lifecycle(server: Any, folder: Path, ranks: tuple[Mapping[str, str], ...]) -> None:
    """Upload a probe, replace it by its opposite and delete it; every rank follows at once."""
    admin = {"authorization": f"Bearer {server.admin_key}"}
    for sign, status in ((1, 201), (-1, 200)):
        path = write_probe(folder / "new.safetensors", Reading(2, "mean"), bias=sign * SHIFT)
        reply = server.client().put("/v1/probes/new", content=path.read_bytes(), headers=admin)
        assert reply.status_code == status, reply.text
        for headers in ranks:
            result = ask(server, headers, "wide:new", {}).json()["q_probe"]["results"][0]
            assert all(abs(each - sign * SHIFT) < SHIFT / 2 for each in result["scores"]), headers
    assert server.client().delete("/v1/probes/new", headers=admin).status_code == 200
    for headers in ranks:
        assert ask(server, headers, "wide:new", {}).status_code == 404
        assert ask(server, headers, "wide:inner", {}).status_code == 200


def count_held(server: Any) -> int:
    """Return how many candidates the workers of all ranks hold."""
    return int(server.client().get("/held").json())


def wait_until_held(server: Any, count: int) -> None:
    """Wait until they hold so many."""
    deadline = time.monotonic() + 30
    while (held := count_held(server)) != count:
        assert time.monotonic() < deadline, f"{held} candidates are held, not {count}"
        time.sleep(0.05)


def check_nothing_is_left(server: Any, ranks: tuple[Mapping[str, str], ...]) -> None:
    """Leave in the middle of requests of every rank: their candidates are held, then dropped."""
    wait_until_held(server, 0)
    body = {"model": "wide:inner", "prompt": "Go on.", "stream": True, "ignore_eos": True}
    for headers in ranks:
        with server.client().stream(
            "POST", COMPLETIONS, json={**body, "max_tokens": 900}, headers=dict(headers)
        ) as reply:
            assert reply.status_code == 200
            wait_until_held(server, K)
        wait_until_held(server, 0)


def test_two_tensor_parallel_workers(
    alone: dict[str, Json], serve_wide: Start, tmp_path: Path
) -> None:
    with serve_wide("--tensor-parallel-size", "2") as server:
        check_equal(answer_all(server), alone)
        check_lifecycle(server, tmp_path, ANY_RANK)
        check_nothing_is_left(server, ANY_RANK)


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run Ray with two devices; return the variables of a server that uses them.

    vLLM 0.32 gives its CPU workers to no Ray: its platform names no device. A stand-in, which is a
    plugin of vLLM's, calls them GPUs, and Ray is told of two, which nobody looks for.
    """
    (tmp_path / "ray_on_cpu.py").write_text(
        "from vllm.platforms.cpu import CpuPlatform\n"
        "class RayCpuPlatform(CpuPlatform):\n    ray_device_key = 'GPU'\n"
        "def name():\n    return 'ray_on_cpu.RayCpuPlatform'\n"
    )
    about = tmp_path / "ray_on_cpu-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-on-cpu\nVersion: 0\n")
    entry = "[vllm.platform_plugins]\nray_on_cpu = ray_on_cpu:name\n"
    (about / "entry_points.txt").write_text(entry)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without authentication, which would leave a token in the home folder.
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--port", str(port), "--num-cpus", "2", "--num-gpus", "2"]
    command += ["--include-dashboard", "false", "--object-store-memory", str(200 << 20)]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # it has sockets
        process = subprocess.Popen(
            [*command, "--temp-dir", short],
            stdout=subprocess.DEVNULL,
            # Its workers begin with it, not with the server's.
            env={**os.environ, **variables, "PYTHONPATH": add_path(str(tmp_path))},
        )
        try:
            wait_for_port(port, process)
            yield {**variables, "RAY_ADDRESS": f"127.0.0.1:{port}", "path": str(tmp_path)}
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("Ray did not start")


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install ray")
def test_two_workers_of_ray(
    alone: dict[str, Json], serve_wide: Start, ray_cluster: dict[str, str], tmp_path: Path
) -> None:
    flags = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "ray")
    with serve_wide(*flags, **ray_cluster) as server:
        check_equal(answer_all(server), alone)
        check_lifecycle(server, tmp_path, ANY_RANK)
        check_nothing_is_left(server, ANY_RANK)


@pytest.fixture(scope="module")
def two_ranks(serve_wide: Start) -> Iterator[Any]:
    """Serve two copies of the model."""
    with serve_wide("--data-parallel-size", "2") as server:
        yield server


def test_each_data_parallel_rank_answers_as_one_process(
    alone: dict[str, Json], two_ranks: Any, tmp_path: Path
) -> None:
    for headers in EACH_RANK:
        check_equal(answer_all(two_ranks, headers), alone)
    check_lifecycle(two_ranks, tmp_path, EACH_RANK)
    check_nothing_is_left(two_ranks, EACH_RANK)


def test_a_prompts_candidates_stay_on_one_rank(two_ranks: Any) -> None:
    """One prompt after another, and several at once, which both ranks share."""
    before = count_finished(two_ranks, 0)
    for headers in (*EACH_RANK, {}, {}):
        assert ask(two_ranks, headers, "wide:inner", {}).status_code == 200
        after = count_finished(two_ranks, sum(before) + K)
        grown = [new - old for new, old in zip(after, before, strict=True)]
        assert sorted(grown) == [0, K]
        assert not headers or grown[int(headers["x-data-parallel-rank"])] == K
        before = after
    num_requests = 5  # odd: the candidates, spread evenly, would be no multiples of K
    with ThreadPoolExecutor(num_requests) as pool:
        # So long that each begins before another has ended.
        replies = pool.map(
            lambda _: ask(two_ranks, {}, "wide:end", {}, max_tokens=400), range(num_requests)
        )
    assert {each.status_code for each in replies} == {200}
    after = count_finished(two_ranks, sum(before) + num_requests * K)
    grown = [new - old for new, old in zip(after, before, strict=True)]
    assert all(grown), grown
    assert [each % K for each in grown] == [0, 0]


def count_finished(server: Any, least: int) -> list[int]:
    """Return how many samples each rank has finished, once they are at least so many together."""
    pattern = re.compile(
        r'^vllm:request_success_total\{engine="(\d)",finished_reason="length".*\} ([0-9.]+)',
        re.MULTILINE,
    )
    deadline = time.monotonic() + 30
    while True:
        shown = pattern.findall(server.client().get("/metrics").text)
        counts = [int(float(count)) for _, count in sorted(shown)]
        if sum(counts) >= least:
            return counts
        assert time.monotonic() < deadline, counts
        time.sleep(0.05)
