"""The command ``qprobe proxy`` in its light form, from its flags to its end by a signal."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from starlette.responses import JSONResponse, Response

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe
from qprobe.probe.confidence import Confidence, Platt
from qprobe.probe.probe import Endpoint

Json = dict[str, Any]
URL = "http://127.0.0.1:9/v1"
EMBEDDED = ["--embeddings", URL, "--embedding-model", "e"]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """Return a probe of a model of two dimensions: the text's length, and 1."""
    info = ProbeInfo(
        base_model="org/e",
        hidden_size=2,
        num_layers=1,
        objective="ce",
        k=3,
        beta=0,
        endpoint=Endpoint(template="{completion}", normalize=False),
    )
    path = tmp_path / "p.safetensors"
    length, one = (Terms.linear(Reading("embedding", "mean"), each) for each in np.eye(2))
    save_probe(Probe(info, length, confidence=Confidence(Platt(2, -2), one)), path)
    return path


WRONG = [
    ([], "--upstream"),
    (["--upstream", URL], "one of the arguments --reader --embeddings is required"),
    (["--upstream", URL, "--embeddings", URL], "--embedding-model"),
    (["--upstream", URL, "--reader", "org/m", "--embedding-model", "e"], "goes with --embeddings"),
    (["--upstream", URL, *EMBEDDED, "--dtype", "float32"], "--dtype goes with --reader"),
    (["--upstream", URL, *EMBEDDED, "--probe-layers", "3"], "--probe-layers goes with --reader"),
    (["--upstream", URL, *EMBEDDED, "--schedule", "off"], "--schedule"),
    (
        ["--upstream", URL, "--reader", "org/m", "--embeddings-key-header", "k"],
        "--embeddings-key-header goes with --embeddings",
    ),
    (["--upstream", URL, *EMBEDDED, "--allowed-origins", "*"], "must be a JSON list"),
    (["--upstream", URL, *EMBEDDED, "--upstream-key-header", "a b"], "must be a header's name"),
    (
        ["--upstream", URL, *EMBEDDED, "--upstream-key-header", "a"],
        "--upstream-key-header 'a': there",
    ),
    (["--upstream", "nowhere", *EMBEDDED], "--upstream 'nowhere'"),
    (["--upstream", URL, *EMBEDDED, "--port", "99999"], "--port must be"),
    (["--upstream", URL, *EMBEDDED, "--probe", "p=/none"], "there is none"),
    (["--upstream", URL, *EMBEDDED, "--pass-authorization", "--api-key", "k"], "--api-key"),
    (["--upstream", URL, *EMBEDDED, "--max-k", "0"], "--max-k"),
    (["--upstream", URL, *EMBEDDED, "--budget-tokens", "0"], "--budget-tokens"),
    (["--upstream", URL, *EMBEDDED], "cannot be"),  # the endpoint is not there
]


@pytest.mark.parametrize(("flags", "said"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_wrong_flags_are_told(run_qprobe: Callable[..., Any], flags: list[str], said: str) -> None:
    ran = run_qprobe("proxy", *flags)
    assert ran.status != 0
    assert said in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err
    assert not ran.heavy


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SSL_CERT_FILE", "/none.pem", "SSL_CERT_FILE '/none.pem': No such file"),
        ("SSL_CERT_FILE", __file__, f"SSL_CERT_FILE {__file__!r}: "),
        ("HTTPS_PROXY", "ftp://user:secret@x", "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is no"),
    ],
)
def test_what_the_environment_says_of_connections_is_checked(
    run_qprobe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(name, value)
    ran = run_qprobe("proxy", "--upstream", URL, *EMBEDDED)
    assert ran.status != 0
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert "secret" not in ran.err


# The command, which in the end says how much the garbage collector has left alone.
RUN = """
import atexit, gc
from qprobe_server.cli import main

atexit.register(lambda: print("frozen", gc.get_freeze_count()))
main()
"""


def answer_all(make: Any) -> Any:
    """Return what answers chats by texts of growing length, and embeds them by that."""

    async def answer(request: Any, body: Json, number: int) -> Response:
        if "input" in body:
            data = [
                {"index": index, "embedding": [len(text), 1]}
                for index, text in enumerate(body["input"])
            ]
            return JSONResponse({"model": "e", "data": data})
        return JSONResponse(make.complete("x" * (body.get("seed", 0) + 1)))

    return answer


async def test_the_light_form_starts_at_once_and_reranks(
    setting: Any, make: Any, probe: Path
) -> None:
    """Within two seconds of processor time; neither torch nor vLLM is imported.

    What is imported, a hundred thousand objects, is no matter of garbage collections, which hold
    all requests.
    """
    setting.stub.answer = answer_all(make)
    url = f"{setting.stub.url}/v1"
    flags = ["--upstream", url, "--embeddings", url, "--embedding-model", "e"]
    flags += ["--probe", f"p={probe}", "--host", "127.0.0.1", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-X", "importtime", "-c", RUN, "proxy", *flags],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    shown = (await process.stdout.readuntil(b"curl ")).decode()
    used = psutil.Process(process.pid).cpu_times()
    address = next(line.split()[1] for line in shown.splitlines() if line.strip().startswith("API"))
    body = {"model": "m:p", "messages": [{"role": "user", "content": "hi"}], "seed": 0}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        reply = (await client.post(f"{address}/chat/completions", json=body)).json()
        await client.get(f"{address}/models?key=of-theirs")
        health = await client.get(address.replace("/v1", "/health"))
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert "  probe       MODEL:p  best of 3\n" in shown
    assert reply["choices"][0]["message"]["content"] == "xxx"
    assert reply["q_probe"]["results"][0]["scores"] == [1, 2, 3]
    assert reply["q_probe"]["results"][0]["confidence"] == [0.5] * 3
    assert b'"GET /v1/models HTTP/1.1" 200' in out
    assert b"of-theirs" not in out + err
    assert health.json() == {"status": "ok"}
    assert process.returncode == 0
    assert int(out.rpartition(b"frozen ")[2]) > 50_000
    imported = {
        line.rpartition(b"|")[2].strip()
        for line in err.splitlines()
        if line.startswith(b"import time:")
    }
    assert not imported & {b"torch", b"vllm"}
    assert used.user + used.system < 2
