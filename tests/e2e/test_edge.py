"""What stock clients, proxies and operators meet at the HTTP edge of a real server."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

BASE = "smollm2-135m"
MODEL = f"{BASE}:end"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ASKED = [{"role": "user", "content": "Count to three."}]
Json = dict[str, Any]


def chat(**fields: Any) -> Json:
    return {"model": MODEL, "messages": ASKED, "max_tokens": 4, **fields}


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def read_stream(reply: httpx.Response) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if "data: " in line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_aborted_by_its_id(server: Any, http: httpx.Client, *, stream: bool) -> None:
    """All its candidates, and it ends as an aborted request of vLLM's does."""
    replies: list[httpx.Response] = []

    def ask() -> None:
        body = chat(max_tokens=4000, ignore_eos=True, stream=stream)
        headers = {"x-request-id": "to-be-aborted"}
        with server.client() as client:
            replies.append(client.post(CHAT, json=body, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    server.wait_until_running()
    begun_s = time.monotonic()
    aborted = {"request_ids": ["chatcmpl-to-be-aborted"]}
    assert http.post("/inference/v1/abort_requests", json=aborted).status_code == 200
    asking.join(timeout=60)
    assert time.monotonic() - begun_s < 10
    (reply,) = replies
    assert reply.status_code == 200
    chunks = read_stream(reply) if stream else [reply.json()]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons[-1] == "abort"
    running = re.compile(r"^vllm:num_requests_running\{.*\} [1-9]", re.MULTILINE)
    while running.search(http.get("/metrics").text):  # vLLM counts anew at its next step
        assert time.monotonic() - begun_s < 20
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"messages": ASKED}, "chat.completion"),
        ({"prompt": "One two", "best_of": 3}, "text_completion"),
    ],
)
def test_invocations_rerank(http: httpx.Client, fields: Json, kind: str) -> None:
    reply = http.post("/invocations", json={"model": MODEL, "max_tokens": 4, **fields}).json()
    assert (reply["object"], reply["model"]) == (kind, MODEL)
    assert len(reply["q_probe"]["results"][0]["scores"]) == fields.get("best_of", 4)


def test_routes_that_do_not_rerank_say_so(http: httpx.Client) -> None:
    body: Json = {"model": BASE, "token_ids": [1, 2], "sampling_params": {"max_tokens": 2}}
    assert http.post("/inference/v1/generate", json=body).status_code == 200
    for fields, param in (({"q_probe": {"probe": "end"}}, "q_probe"), ({"model": MODEL}, "model")):
        refused = http.post("/inference/v1/generate", json={**body, **fields})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert "not reranked" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": ASKED}),
        (COMPLETIONS, {"prompt": "x"}),
        (RESPONSES, {"input": "x"}),
        (MESSAGES, {"messages": ASKED, "max_tokens": 4}),
    ],
)
def test_render_takes_aliases(http: httpx.Client, path: str, fields: Json) -> None:
    replies = [http.post(f"{path}/render", json={"model": m, **fields}) for m in (BASE, MODEL)]
    assert [reply.status_code for reply in replies] == [200, 200]
    first, second = (
        [
            each["token_ids"]
            for each in (reply.json() if isinstance(reply.json(), list) else [reply.json()])
        ]
        for reply in replies
    )
    assert first == second


def test_every_model_that_is_listed_is_known(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        listed = client.models.list().data
        assert MODEL in [each.id for each in listed]
        for each in listed:
            assert client.models.retrieve(each.id).id == each.id
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
        for path in ("smollm", f"{BASE}x:end"):
            with pytest.raises(openai.NotFoundError, match=f"{BASE}; MODEL:PROBE .*end") as refused:
                client.chat.completions.create(model=path, messages=ASKED)  # type: ignore[arg-type]
            assert refused.value.param == "model"


def test_the_echoed_model_is_the_one_that_was_asked_for(server: Any) -> None:
    """So that a client that goes on by it keeps its probe."""
    url, key = f"{server.url}/v1", server.key
    asked: Any = {"model": MODEL, "messages": ASKED, "max_tokens": 4}
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        assert client.chat.completions.create(**asked).model == MODEL
        stream: Any = client.chat.completions.create(**asked, stream=True)
        assert {chunk.model for chunk in stream} == {MODEL}
        assert client.completions.create(model=MODEL, prompt="x", max_tokens=4).model == MODEL
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=4, stream=True)
        assert {chunk.model for chunk in stream} == {MODEL}
        fields: Any = {"input": "x", "max_output_tokens": 4}
        assert client.responses.create(model=MODEL, **fields).model == MODEL
        events: Any = client.responses.create(model=MODEL, **fields, stream=True)
        found = [event.response.model for event in events if hasattr(event, "response")]
        assert set(found) == {MODEL}
        assert len(found) > 2
        bare: Any = {**asked, "model": BASE}
        assert client.chat.completions.create(**bare).model == BASE
    with anthropic.Anthropic(base_url=server.url, auth_token=key, max_retries=0) as other:
        assert other.messages.create(**asked).model == MODEL
        begun: Any = next(iter(other.messages.create(**asked, stream=True)))
        assert begun.message.model == MODEL


@pytest.mark.parametrize(
    ("path", "fields"), [(CHAT, {"messages": ASKED}), (COMPLETIONS, {"prompt": "x"})]
)
def test_the_last_chunk_has_the_usage_and_the_result(
    http: httpx.Client, path: str, fields: Json
) -> None:
    body = {"model": MODEL, "max_tokens": 4, "stream": True, "q_probe": {"k": 2}, **fields}
    usage = {"stream_options": {"include_usage": True}}
    *others, last = read_stream(http.post(path, json={**body, **usage}))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] <= 4
    assert len(last["q_probe"]["results"][0]["scores"]) == 2
    assert not any("q_probe" in each for each in others)
    reply = http.post(path, json=body)
    assert "q_probe" in read_stream(reply)[-1]
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "headers", "param"),
    [
        (CHAT, {"n": "5"}, {}, "n"),
        (CHAT, {"n": [2]}, {}, "body.n"),
        (CHAT, {"k": 2}, {}, "k"),
        (CHAT, {"q_prob": {"k": 2}}, {}, "q_prob"),
        (CHAT, {}, {"x-data-parallel-rank": "7"}, "X-data-parallel-rank"),
        (CHAT, {}, {"x-data-parallel-rank": "-1"}, "X-data-parallel-rank"),
        (CHAT, {"model": BASE}, {"x-data-parallel-rank": "7"}, "X-data-parallel-rank"),
        (COMPLETIONS, {"prompt": "x", "n": 2, "best_of": 1}, {}, "best_of"),
    ],
)
def test_what_is_wrong_is_refused_before_a_stream_begins(
    http: httpx.Client, path: str, fields: Json, headers: Json, param: str, *, stream: bool
) -> None:
    body = {**chat(stream=stream), **fields}
    if path == COMPLETIONS:
        del body["messages"]
    reply = http.post(path, json=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_number_may_be_a_string_as_in_vllm(http: httpx.Client) -> None:
    for model in (BASE, MODEL):
        assert len(http.post(CHAT, json=chat(model=model, n="2")).json()["choices"]) == 2
    greedy = http.post(CHAT, json=chat(temperature="0")).json()
    assert greedy["q_probe"]["k"] == 1


@pytest.mark.parametrize("raw", [b"\xff", b'{"a": "\xff"}', b"[" * 100_000, b"[]"])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, raw: bytes) -> None:
    for path in (CHAT, MESSAGES):
        reply = http.post(path, content=raw, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["type"]) == (400, "error")
        assert reply.json()["error"]["param"] == "body"


def test_a_body_that_is_too_large_is_refused(server: Any) -> None:
    """By the length that it says it has: nothing of it is sent."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 5000000000\r\n\r\n"
    status, reply = exchange(server, head.encode())
    assert status == 413
    assert json.loads(reply)["error"]["param"] == "body"


def exchange(server: Any, sent: bytes) -> tuple[int, bytes]:
    """Send bytes and read a reply that has a length."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        file = connection.makefile("rb")
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, file.read(length)


def test_javas_client_is_answered(server: Any) -> None:
    """It offers h2c with every request."""
    body = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: a\r\n"
    head += f"HTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {server.key}\r\n\r\n"
    status, reply = exchange(server, head.encode() + body)
    assert status == 200
    assert json.loads(reply)["q_probe"]["probe"] == "end"


def test_a_stream_interval_goes_with_a_schedule(http: httpx.Client) -> None:
    """Candidates are compared token by token, and the answer comes as the request wants it."""
    schedule = [{"tokens": 16, "keep": 2}]
    body = chat(
        **{"model": f"{BASE}:python", "max_tokens": 40, "ignore_eos": True, "stream": True},
        **{"stream_interval": 10, "q_probe": {"k": 4, "schedule": schedule}, "seed": 1},
    )
    whole = http.post(CHAT, json={**body, "stream": False, "stream_interval": None}).json()
    chunks = read_stream(http.post(CHAT, json=body))
    texts = [each["choices"][0]["delta"].get("content") for each in chunks if each["choices"]]
    parts = [text for text in texts if text]
    assert "".join(parts) == whole["choices"][0]["message"]["content"]
    assert len(parts) <= 6
    told = next(each["q_probe"] for each in chunks if "q_probe" in each)
    assert told["results"][0]["rejected_at"].count(16) == 2
    assert told["results"][0]["selected"] == whole["q_probe"]["results"][0]["selected"]
