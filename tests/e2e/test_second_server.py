"""A server started in another way: no admin key, uploads of an earlier life, traces; its end."""

import http.server
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qprobe_server.library.registry import read_probe
from qprobe_server.library.store import ProbeStore

CHAT = "/v1/chat/completions"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
SECRET = "an-otter-named-Zebulon"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as OpenTelemetry's own collector does."""

    spans: list[Any]

    def do_POST(self) -> None:
        """Keep what is sent."""
        sent = ExportTraceServiceRequest()
        sent.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[Any]]]:
    """Run a collector; give its address and what it has got."""
    Collector.spans = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{collector.server_port}/v1/traces", Collector.spans
        collector.shutdown()


@pytest.fixture(scope="module")
def second(
    start_server: Callable[..., AbstractContextManager[Any]],
    make_probe: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    spans: tuple[str, list[Any]],
    shipped: Path,
    serve_small: list[str],
) -> Iterator[Any]:
    """Serve ``end``, replaced by an upload of that name, and ``kept``, which was uploaded too.

    Also the shipped probe, which alone has a head for the server's schedule.
    """
    folder = tmp_path_factory.mktemp("second")
    data = make_probe("uploaded", k=3).read_bytes()
    with closing(ProbeStore(folder / "kept")) as store:
        for name in ("end", "kept"):
            store.save(read_probe(name, data, created=5), data)
    given = shutil.copy(make_probe("given", layer="final", k=2), folder / "given.safetensors")
    with start_server(
        folder / "log",
        *serve_small,
        *("--probe", f"end={given}", "--probe-dir", str(folder / "kept")),
        *("--probe", f"python={shipped / 'python.safetensors'}", "--schedule", "24:3"),
        *("--otlp-traces-endpoint", spans[0]),
        *("--shutdown-timeout", "60"),
        QPROBE_ADMIN_API_KEY="",
        VLLM_CPU_KVCACHE_SPACE="1",
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
    ) as started:
        yield started


def ask(server: Any, probe: str, **headers: str) -> Any:
    messages = [{"role": "user", "content": f"Say hello to {SECRET}."}]
    body = {"model": f"smollm2-135m:{probe}", "messages": messages, "max_tokens": 6}
    return server.client().post(CHAT, json=body, headers=headers)


def test_votes_run_no_code_here_and_drop_nobody(second: Any) -> None:
    asked = {
        "model": "smollm2-135m:python",
        "messages": [{"role": "user", "content": "Say it."}],
        "structured_outputs": {"choice": ["yes", "no"]},
        "q_probe": {"k": 4, "vote": {"by": "code", "inputs": ["f(3)"]}},
    }
    refused = second.client().post(CHAT, json=asked)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "q_probe.vote.by"
    assert "--allow-code-execution" in error["message"]
    asked["q_probe"] = {"k": 4, "vote": {"by": "text"}}
    reply = second.client().post(CHAT, json=asked).json()["q_probe"]
    assert reply["notice"] == "no candidate is dropped early: all of them vote"
    assert None not in reply["results"][0]["vote"]["classes"]


def test_uploads_of_an_earlier_life_are_served(second: Any) -> None:
    cards = {each["id"]: each for each in second.client().get("/v1/probes").json()["data"]}
    assert set(cards) == {"end", "kept", "python"}
    for name in ("end", "kept"):
        assert (cards[name]["k"], cards[name]["created"]) == (3, 5)
    reply = ask(second, "end").json()["q_probe"]
    assert (reply["k"], reply["version"]) == (3, cards["kept"]["version"])


def test_nothing_can_be_changed_without_an_admin_key(second: Any) -> None:
    for method in ("PUT", "DELETE"):
        reply = second.client().request(method, "/v1/probes/kept", content=b"x")
        assert reply.status_code == 405
    document = second.client().get("/openapi.json").json()
    assert set(document["paths"]["/v1/probes/{name}"]) == {"get"}


def test_the_servers_schedule_is_followed_where_the_probe_can(second: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Count to twenty."}], "max_tokens": 40}
    replies = {
        probe: second.client().post(CHAT, json={**body, "model": f"smollm2-135m:{probe}"}).json()
        for probe in ("python", "kept")
    }
    followed, not_followed = (replies[probe]["q_probe"] for probe in ("python", "kept"))
    assert followed["schedule"] == [{"tokens": 24, "keep": 3}]
    assert followed["results"][0]["rejected_at"].count(None) == 3
    assert "notice" not in followed
    assert not_followed["notice"].startswith("no candidate is dropped early: the probe 'kept'")
    assert "rejected_at" not in not_followed["results"][0]
    off = {**body, "model": "smollm2-135m:python", "q_probe": {"schedule": "off"}}
    assert "schedule" not in second.client().post(CHAT, json=off).json()["q_probe"]


def test_a_trace_holds_the_choice_and_its_candidates(
    second: Any, spans: tuple[str, list[Any]]
) -> None:
    """The client's span, ours below it, and vLLM's of each candidate below ours; no texts."""
    assert ask(second, "kept", traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01").status_code == 200
    deadline = time.monotonic() + 30  # spans are sent every 5 s
    while time.monotonic() < deadline:
        mine = [span for span in spans[1] if span.trace_id.hex() == TRACE_ID]
        if len(mine) >= 4:
            break
        time.sleep(0.5)
    (rerank,) = (span for span in mine if span.name == "rerank")
    assert rerank.parent_span_id.hex() == SPAN_ID
    candidates = [span for span in mine if span.name == "llm_request"]
    assert len(candidates) == 3
    assert {span.parent_span_id for span in candidates} == {rerank.span_id}
    about = {each.key: each.value for each in rerank.attributes}
    assert [each.string_value for each in about["qprobe.probe"].array_value.values] == ["kept"]
    assert about["qprobe.k"].int_value == 3
    assert about["qprobe.sampled_tokens"].int_value > 3
    assert SECRET not in str(spans[1])


def test_nothing_secret_is_in_the_log(second: Any) -> None:
    log = second.log.read_text()
    assert CHAT in log
    assert SECRET not in log
    assert second.key not in log


def test_prompts_that_are_reranked_end_before_the_server_does(second: Any) -> None:
    """The last test, as it stops the server: a whole reply and a stream, asked before the signal.

    The server's schedule drops candidates meanwhile, for which it has to ask the engine.
    """

    def ask_long(*, stream: bool) -> Any:
        body = {
            "model": "smollm2-135m:python",
            "messages": [{"role": "user", "content": "Count to a hundred."}],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": stream,
            "q_probe": {"k": 4},
        }
        return second.client().post(CHAT, json=body)

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask_long, stream=stream) for stream in (False, True)]
        second.wait_until_running(6)  # of both: one alone has 4, and 3 from the checkpoint on
        assert not any(each.done() for each in asked)
        second.process.send_signal(signal.SIGTERM)
        whole, streamed = (each.result() for each in asked)
    assert whole.status_code == 200, whole.text
    (result,) = whole.json()["q_probe"]["results"]
    assert result["rejected_at"].count(None) == 3
    assert whole.json()["usage"]["completion_tokens"] == 400
    assert '"rejected_at"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    second.process.wait(timeout=60)
