"""What an operator of several upstreams sees of them in ``/metrics``."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import JSONResponse, RedirectResponse, Response

from qprobe_server.proxy.upstream import Bounds

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
ASK: Json = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "seed": 0,
    "q_probe": {"probe": "good"},
}
PASSED: Json = {"model": "secret-model", "messages": []}
DASHBOARD = Path(__file__).parents[3] / "docker/grafana/dashboard.json"


async def read(proxy: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Return what is not 0 of upstreams: by name without its prefix, upstream and outcome."""
    text = (await proxy.get("/metrics")).text
    return {
        (
            each.name.removeprefix("qprobe_upstream_"),
            *(each.labels[label] for label in ("upstream", "outcome") if label in each.labels),
        ): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name.startswith("qprobe_upstream_") and each.value
        if not each.name.endswith(("_created", "_bucket", "_sum"))
    }


async def test_tries_are_counted_by_upstream_and_outcome(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two candidates are refused for now at first, and one for good."""
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.01)
    busy: set[int] = set()

    async def answer(request: Any, body: Json, number: int) -> Response:
        seed = body["seed"]
        if seed == 3:
            return Response(b"no", 400)
        if seed in (1, 2) and seed not in busy:
            busy.add(seed)
            return Response(b"later", 429 if seed == 1 else 503)
        return JSONResponse(make.complete(f"good {seed}"))

    setting.stub.answer = answer
    upstreams = [f"m={setting.stub.url}/v1", f"other={setting.stub.url}/v1"]
    async with setting.open(upstreams=upstreams) as proxy:
        assert (await proxy.post(CHAT, json=ASK)).status_code == 200
        found = await read(proxy)
    assert found == {
        ("requests_total", "m", "ok"): 3,
        ("requests_total", "m", "busy"): 1,
        ("requests_total", "m", "failed"): 1,
        ("requests_total", "m", "refused"): 1,
        ("retries_total", "m"): 2,
        ("first_byte_seconds_count", "m"): 3,
    }


async def test_what_passes_through_is_counted_and_labels_nothing(setting: Any, make: Any) -> None:
    """Nobody's model becomes a label, nor does an address."""
    replies = (
        make.complete("four"),
        make.stream(make.chunks("four")),
        Response(b"no", 404),
        RedirectResponse("http://other.example/v1"),
    )
    setting.stub.answer = make.answer_with(*replies)
    async with setting.open() as proxy:
        for _ in replies:
            await proxy.post(CHAT, json=PASSED)
        found = await read(proxy)
        text = (await proxy.get("/metrics")).text
    assert found == {
        ("requests_total", "*", "ok"): 2,
        ("requests_total", "*", "refused"): 1,
        ("requests_total", "*", "broken"): 1,
        ("first_byte_seconds_count", "*"): 2,
    }
    assert "secret-model" not in text
    assert "127.0.0.1" not in text


@pytest.mark.parametrize("body", [ASK, PASSED], ids=["reranked", "passed"])
async def test_an_upstream_that_is_not_there_is_broken(
    setting: Any, monkeypatch: pytest.MonkeyPatch, body: Json
) -> None:
    monkeypatch.setattr("qprobe_server.proxy.upstream._MAX_TRIES", 1)
    async with setting.open(upstreams=["http://127.0.0.1:9/v1"]) as proxy:
        assert (await proxy.post(CHAT, json=body)).status_code == 502
        found = await read(proxy)
    assert found == {("requests_total", "*", "broken"): 4 if "q_probe" in body else 1}


async def test_a_client_that_leaves_and_an_answer_that_is_late_are_told_apart(
    setting: Any,
) -> None:
    async def sleep(request: Any, body: Json, number: int) -> Response:
        await asyncio.sleep(30)
        return Response()

    setting.stub.answer = sleep
    async with setting.open(bounds=Bounds(deadline_s=1)) as proxy:
        assert (await proxy.post(CHAT, json=ASK)).status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            await proxy.post(CHAT, json=PASSED, timeout=0.5)
        for _ in range(100):
            found = await read(proxy)
            if ("requests_total", "*", "cancelled") in found:
                break
            await asyncio.sleep(0.1)
    assert found == {
        ("requests_total", "*", "timeout"): 4,
        ("requests_total", "*", "cancelled"): 1,
    }


async def test_a_client_that_leaves_in_an_upload_is_no_failure_of_the_upstreams(
    setting: Any,
) -> None:
    async with setting.open() as proxy:
        await setting.leave_in_upload(proxy)
        async with asyncio.timeout(10):
            while not (found := await read(proxy)):  # noqa: ASYNC110  uvicorn tells nobody
                await asyncio.sleep(0.01)
    assert found == {("requests_total", "*", "cancelled"): 1}


async def test_the_dashboard_and_the_proxy_know_the_same_metrics(setting: Any) -> None:
    async with setting.open() as proxy:
        text = (await proxy.get("/metrics")).text
    served = set(re.findall(r"^(qprobe_upstream_\w+)[{]", text, re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = " ".join(each["expr"] for panel in panels for each in panel.get("targets", ()))
    shown = set(re.findall(r"qprobe_upstream_\w+", queries))
    assert shown <= served
    kept = {each for each in served if not each.endswith(("_created", "_sum", "_count"))}
    assert kept == shown
