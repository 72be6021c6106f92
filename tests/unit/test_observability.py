"""Metrics with bounded labels, and the access log."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from qprobe_server.choice.schemas import ResultReply
from qprobe_server.edge.access_log import AccessLogMiddleware, start_access_log
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.library.registry import ProbeRegistry, ServedProbe

SECRET = "an-otter-named-Zebulon"


def make_result(weights: list[float], selected: list[int]) -> ResultReply:
    entropy = -sum(each * math.log(each) for each in weights if each)
    return ResultReply(
        selected=selected,
        scores=[1.0, 3.0, 2.0, 2.0],
        weights=weights,
        kl=math.log(4) - entropy,
        beta=0.1,
        sampled_tokens=100,
    )


def test_what_a_prompt_adds() -> None:
    registry = CollectorRegistry()
    metrics = RerankMetrics(registry)
    metrics.observe("a", make_result([0.5, 0.5, 0, 0], [0, 2]), [10, 20, 30, 40])
    metrics.count_non_finite("a", [1.0, math.nan, math.inf])
    metrics.count_prompt("a", "error")
    found = {
        name: registry.get_sample_value(name, {"probe": "a"})
        for name in (
            "qprobe_sampled_tokens_total",
            "qprobe_rejected_tokens_total",
            "qprobe_score_spread_sum",
            "qprobe_weight_entropy_nats_sum",
            "qprobe_candidates_sum",
            "qprobe_non_finite_scores_total",
        )
    }
    assert list(found.values()) == pytest.approx(
        [100, 60, math.sqrt(0.5), math.log(2), 4, 2], abs=1e-9
    )
    # A histogram with buckets below 0 has no sum.
    for bound, count in (("1.0", 0), ("2.0", 1)):
        labels = {"probe": "a", "le": bound}
        assert registry.get_sample_value("qprobe_score_mean_bucket", labels) == count
    labels = {"probe": "a", "outcome": "error"}
    assert registry.get_sample_value("qprobe_prompts_total", labels) == 1


def test_what_early_rejection_adds() -> None:
    """By hand: two survivors of 40 and 60 tokens; three dropped at 8 and 16 tokens."""
    registry = CollectorRegistry()
    metrics = RerankMetrics(registry)
    result = ResultReply(
        selected=[0],
        scores=[1.0, 3.0, None, None, None],
        weights=[0.5, 0.5, 0.0, 0.0, 0.0],
        kl=None,
        beta=0.1,
        sampled_tokens=153,
        rejected_at=[None, None, 8, 8, 16],
    )
    metrics.observe("a", result, [40, 60, 9, 12, 32])
    assert registry.get_sample_value("qprobe_wasted_tokens_total", {"probe": "a"}) == 0 + 3 + 15
    assert registry.get_sample_value("qprobe_saved_tokens_total", {"probe": "a"}) == 41 + 38 + 18
    for checkpoint, count in (("8", 2), ("16", 1)):
        labels = {"probe": "a", "checkpoint": checkpoint}
        name = "qprobe_early_rejected_candidates_total"
        assert registry.get_sample_value(name, labels) == count
    spread = registry.get_sample_value("qprobe_score_spread_sum", {"probe": "a"})
    assert spread == pytest.approx(1.0)


def test_how_sure_answers_are_is_counted_where_a_probe_tells_it() -> None:
    """Of those that are answers, and of no candidate that was dropped."""
    registry = CollectorRegistry()
    metrics = RerankMetrics(registry)
    told = {"confidence": [0.15, None, 0.95, 0.5]}
    metrics.observe("a", make_result([1, 0, 0, 0], [0, 2]).model_copy(update=told), [25] * 4)
    metrics.observe("b", make_result([1, 0, 0, 0], [0]), [25] * 4)
    for bound, count in (("0.1", 0), ("0.2", 1), ("0.9", 1), ("1.0", 2), ("+Inf", 2)):
        labels = {"probe": "a", "le": bound}
        assert registry.get_sample_value("qprobe_confidence_bucket", labels) == count
    assert registry.get_sample_value("qprobe_confidence_count", {"probe": "b"}) is None


def test_ten_thousand_probes_make_fifty_labels_and_two() -> None:
    registry = CollectorRegistry()
    metrics = RerankMetrics(registry)
    labels = [metrics.label([f"p{number}"]) for number in range(10_000)]
    assert labels[:50] == [f"p{number}" for number in range(50)]
    assert set(labels[50:]) == {"other"}
    assert metrics.label(["p3"]) == "p3"
    assert metrics.label(["p3", "p4"]) == "mix"
    for label in {*labels, "mix"}:
        metrics.observe(label, make_result([1, 0, 0, 0], [0]), [25] * 4)
    series = sum(len(family.samples) for family in registry.collect())
    assert series < 5000


def test_a_probe_cannot_take_a_label_with_a_meaning() -> None:
    metrics = RerankMetrics(CollectorRegistry())
    assert metrics.label(["mix"]) == metrics.label(["other"]) == "other"


def test_the_label_of_a_deleted_probe_is_freed(
    make_probe: Callable[..., Path], serve: Callable[..., ServedProbe]
) -> None:
    """Once no request holds the probe, and not where another version of it is served."""
    collectors, probes = CollectorRegistry(), ProbeRegistry()
    metrics = RerankMetrics(collectors)
    metrics.watch(probes)

    def use(name: str) -> str:
        label = metrics.label([name])
        metrics.observe(label, make_result([1, 0, 0, 0], [0]), [25] * 4)
        metrics.count_prompt(label, "ok")
        return label

    def shown() -> set[str]:
        samples = [each for family in collectors.collect() for each in family.samples]
        return {each.labels["probe"] for each in samples if "probe" in each.labels}

    for number in range(60):
        held: ServedProbe | None = serve(probes, f"p{number}", make_probe("any"))
        assert use(f"p{number}") == f"p{number}"
        probes.remove(f"p{number}")
        assert shown() == {f"p{number}"}
        held = None
        assert probes.get("next") is None  # the next request
        assert shown() == set()
    assert held is None
    serve(probes, "stays", make_probe("any"))
    use("stays")
    serve(probes, "stays", make_probe("any", k=3))
    assert shown() == {"stays"}


def test_the_number_of_probes_is_shown() -> None:
    collectors, probes = CollectorRegistry(), ProbeRegistry()
    RerankMetrics(collectors).watch(probes)
    assert collectors.get_sample_value("qprobe_probes_loaded") == 0


@pytest.fixture
def lines() -> Iterator[list[str]]:
    logger = logging.getLogger("qprobe_server.access")
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def answer(request: Request) -> JSONResponse:
    await request.body()
    request.scope["qprobe_log"].update({"probe": "mine", "k": 4})
    return JSONResponse({"id": request.scope["qprobe_log"]["request_id"]})


async def fail(request: Request) -> JSONResponse:
    raise RuntimeError("broken")


def make_client() -> httpx.AsyncClient:
    app = FastAPI()
    app.add_route("/ok", answer, methods=["POST"])
    app.add_route("/fail", fail, methods=["POST"])
    app.add_middleware(AccessLogMiddleware)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_one_line_a_request_and_no_text_of_it(lines: list[str]) -> None:
    async with make_client() as client:
        headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "abc-1"}
        reply = await client.post(f"/ok?key={SECRET}", content=SECRET, headers=headers)
        lost = await client.post("/nowhere", content=SECRET)
    first, second = map(json.loads, lines)
    assert first.pop("duration_s") >= 0
    assert first.pop("time")
    assert first == {
        "request_id": "abc-1",
        "method": "POST",
        "path": "/ok",
        "status": 200,
        "probe": "mine",
        "k": 4,
    }
    assert (second["status"], second["request_id"]) == (404, lost.headers["x-request-id"])
    assert SECRET not in "".join(lines)
    assert reply.json() == {"id": "abc-1"}
    assert reply.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", [None, "", "a b", 'x"}', "a" * 129, "é"])
async def test_a_request_without_a_usable_id_gets_one(lines: list[str], given: str | None) -> None:
    async with make_client() as client:
        headers = {} if given is None else {"x-request-id": given.encode("utf-8")}
        reply = await client.post("/ok", headers=headers)  # type: ignore[arg-type]  # bytes too
    made = reply.headers["x-request-id"]
    assert len(made) == 32
    assert reply.json() == {"id": made}
    assert json.loads(lines[0])["request_id"] == made


async def test_a_request_that_breaks_is_logged(lines: list[str]) -> None:
    async with make_client() as client:
        await client.post("/fail")
    assert json.loads(lines[0])["path"] == "/fail"


def test_the_log_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("qprobe_server.access")
    start_access_log()
    try:
        logger.info("%s", '{"a": 1}')
    finally:
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == '{"a": 1}\n'
