"""Which bodies the edge reads, how much of them, and what it says of those that it cannot read."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from qprobe_server.edge.middleware import AppState, RerankMiddleware
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


class Sink:
    """An app that counts what it is given to read, and answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body and answer."""
        chunks = []
        while (message := await receive())["type"] == "http.request":
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.bodies.append(b"".join(chunks))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def client(registry: ProbeRegistry, sink: Sink) -> httpx.AsyncClient:
    app = FastAPI()
    app.state.qprobe = AppState(Settings(max_body_mib=1), registry, "base".__eq__, lambda: ["base"])
    app.add_middleware(RerankMiddleware)
    app.mount("/", sink)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def check_refused(reply: httpx.Response, status: int) -> str:
    """Check OpenAI's and Anthropic's shapes; return the message."""
    assert reply.status_code == status
    assert reply.json()["type"] == "error"
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == ("body", status)
    return str(error["message"])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b'{"a": otter}', "line 1 column 7"),
        (b'{"a": "\xff\xfe"}', "must be UTF-8; invalid start byte at byte 7"),
        (b"\xff\xfe", "must be UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a":' + b"9" * 5000 + b"}", "must be JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/tokenize", "/inference/v1/generate"])
async def test_a_body_that_is_no_object_is_refused(
    client: httpx.AsyncClient, sink: Sink, path: str, raw: bytes, said: str
) -> None:
    message = check_refused(await client.post(path, content=raw, headers=JSON), 400)
    assert message.startswith("body: ")
    assert said in message
    assert "otter" not in message
    assert sink.bodies == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json"])
@pytest.mark.parametrize("has_length", [True, False])
async def test_a_body_that_is_too_large_is_refused(
    client: httpx.AsyncClient,
    sink: Sink,
    content_type: str | None,
    *,
    has_length: bool,
) -> None:
    """With a length before any of it is read, without one as soon as there is too much.

    Whatever it says that it is: FastAPI would read it all before vLLM refuses its type.
    """
    part = b" " * (100 << 10)
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += len(part)
            yield part

    headers = {} if content_type is None else {"content-type": content_type}
    if has_length:
        headers["content-length"] = str(100 * len(part))
    app: Any = client._transport.app  # type: ignore[attr-defined]  # whose receive() is to be seen
    status, reply = await call(app, headers, chunks())
    assert status == 413
    assert "at most 1048576 bytes (--max-body-mib 1)" in check_refused(
        httpx.Response(status, content=reply), 413
    )
    assert sent == (0 if has_length else 11 * len(part))
    assert sink.bodies == []


async def call(
    app: Any, headers: dict[str, str], chunks: AsyncIterator[bytes]
) -> tuple[int, bytes]:
    """Call an app as a server does, which reads what the app asks for and no more."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(chunks), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app(
        {"type": "http", "method": "POST", "path": CHAT, "headers": raw, "query_string": b""},
        receive,
        send,
    )
    return sent[0]["status"], sent[1]["body"]


async def test_other_paths_and_methods_are_not_looked_at(
    client: httpx.AsyncClient, sink: Sink
) -> None:
    raw = b'{"q_probe": "' + b"\xff" * (1 << 20)
    for path in ("/playground", "/v1/probes/x", "/v1/embeddings", "/v1/chat/completionz"):
        assert (await client.post(path, content=raw, headers=JSON)).status_code == 200
    assert (await client.put(CHAT, content=raw, headers=JSON)).status_code == 200
    assert sink.bodies == [raw] * 5


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data; boundary=x"])
async def test_what_is_no_json_passes_byte_for_byte(
    client: httpx.AsyncClient, sink: Sink, content_type: str | None
) -> None:
    raw = b'{"q_probe": "' + b"\xff" * 1000
    headers = {} if content_type is None else {"content-type": content_type}
    assert (await client.post(CHAT, content=raw, headers=headers)).status_code == 200
    assert sink.bodies == [raw]


async def test_a_compressed_body_passes_where_no_probe_could_be_asked_for(
    client: httpx.AsyncClient, sink: Sink
) -> None:
    raw = gzip.compress(b'{"model": "base"}')
    packed = {**JSON, "content-encoding": "gzip"}
    for path in ("/inference/v1/generate", "/cohere/v2/chat"):
        assert (await client.post(path, content=raw, headers=packed)).status_code == 200
    assert sink.bodies == [raw] * 2
    for path in (CHAT, "/v1/messages", "/tokenize"):
        reply = await client.post(path, content=raw, headers=packed)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (415, "content-encoding")
        assert error["message"].endswith(f"is not read on {path}, got 'gzip'")
    assert len(sink.bodies) == 2
    plain = {**JSON, "content-encoding": "identity"}
    assert (await client.post(CHAT, json={"model": "base"}, headers=plain)).status_code == 200


async def test_a_chunked_body_passes_byte_for_byte(client: httpx.AsyncClient, sink: Sink) -> None:
    raw = json.dumps({"model": "base", "x": "é" * 5000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), 1000):
            yield raw[start : start + 1000]

    assert (await client.post(CHAT, content=chunks(), headers=JSON)).status_code == 200
    assert sink.bodies == [raw]


async def test_what_a_rewritten_body_holds_is_what_was_sent(
    client: httpx.AsyncClient, sink: Sink
) -> None:
    """But for what is ours: also numbers that no other program's JSON has."""
    fields = {"a": [1e300, 2**70, -0.0, 0.1, None, True], "b": {"é": '"\\\n\u2028🦊'}, "n": 1}
    raw = json.dumps({"model": "base:good", **fields, "q_probe": {}}).encode()
    raw = raw.replace(b'"n": 1', b'"n": 1, "x": [NaN, Infinity, -Infinity]')
    assert (await client.post(CHAT, content=raw, headers=JSON)).status_code == 200
    got = json.loads(sink.bodies[0])
    assert str(got.pop("x")) == "[nan, inf, -inf]"
    assert got == {"model": "base", **fields}
    for odd in ('"\\ud800"', "[" * 300 + "]" * 300):
        raw = f'{{"model": "base:good", "a": {odd}}}'.encode()
        assert "too deep" in check_refused(await client.post(CHAT, content=raw, headers=JSON), 400)
