"""What the edge puts into whole replies and into streams, of an app of our own."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Message

from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.choice.schemas import ResultReply
from qprobe_server.edge.middleware import AppState, RerankMiddleware
from qprobe_server.edge.reply import ReplyWriter
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

Handler = Callable[[Request], Awaitable[Any]]
RESULT = ResultReply(selected=[0], scores=[1.0], weights=[1.0], kl=0.0, beta=0.1, sampled_tokens=3)
CHUNK = {"id": "c", "object": "chunk", "created": 1, "model": "base", "choices": [{"x": 1}]}
USAGE = {**CHUNK, "choices": [], "usage": {"total_tokens": 3}}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
DONE = "data: [DONE]\n\n"


def serve(registry: ProbeRegistry, path: str, handler: Handler) -> httpx.AsyncClient:
    app = FastAPI()
    app.add_route(path, handler, methods=["POST"])
    app.state.qprobe = AppState(Settings(), registry, "base".__eq__, lambda: ["base"])
    app.add_middleware(RerankMiddleware)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def sample() -> None:
    """Do as the engine does for one prompt."""
    rerank = current_rerank.get()
    if rerank is not None:
        rerank.add(rerank.next_prompt(), RESULT)


def dump(fields: Any) -> str:
    """Return JSON as vLLM writes it."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def chunk(fields: dict[str, Any]) -> str:
    return f"data: {dump(fields)}\n\n"


def event(name: str, **fields: Any) -> str:
    """Return an event with its fields in vLLM's order."""
    return f"event: {name}\n{chunk({**fields, 'type': name})}"


async def ask(
    registry: ProbeRegistry, path: str, parts: list[str] | dict[str, Any], **fields: Any
) -> httpx.Response:
    """Ask an app that streams these parts, or replies with this object."""

    async def stream() -> AsyncIterator[str]:
        sample()
        for part in parts:
            yield part

    async def handler(request: Request) -> JSONResponse | StreamingResponse:
        await request.json()
        if isinstance(parts, list):
            return StreamingResponse(stream(), media_type="text/event-stream")
        sample()
        return JSONResponse(parts)

    async with serve(registry, path, handler) as client:
        return await client.post(path, json=fields)


def read_events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


EXPLICIT: dict[str, Any] = {"q_probe": {"probe": "good"}}


async def test_a_chat_stream_ends_with_the_result_if_asked(registry: ProbeRegistry) -> None:
    asked = await ask(registry, CHAT, [chunk(CHUNK), DONE], model="base", **EXPLICIT)
    silent = await ask(registry, CHAT, [chunk(CHUNK), DONE], model="base:good")
    first, last = read_events(asked.text)
    assert first == CHUNK
    assert {**last, "q_probe": None} == {**CHUNK, "choices": [], "q_probe": None}
    assert last["q_probe"]["results"] == [RESULT.model_dump(exclude_unset=True)]
    assert asked.text.endswith(DONE)
    assert read_events(silent.text) == [{**CHUNK, "model": "base:good"}]


async def test_the_chunk_with_the_usage_carries_the_result(registry: ProbeRegistry) -> None:
    """Clients read the last chunk for both."""
    empty = {**CHUNK, "choices": []}
    parts = [chunk(CHUNK), chunk(empty), chunk(USAGE), DONE]
    asked = read_events((await ask(registry, CHAT, parts, model="base", **EXPLICIT)).text)
    assert asked[:2] == [CHUNK, empty]
    assert len(asked) == 3
    told = asked[2].pop("q_probe")
    assert asked[2] == USAGE
    assert told["results"] == [RESULT.model_dump(exclude_unset=True)]
    silent = (await ask(registry, CHAT, parts, model="base")).text
    assert silent == "".join(parts)


async def test_other_streams_carry_the_result_on_their_last_event(registry: ProbeRegistry) -> None:
    delta = event("message_delta", delta={"stop_reason": "end_turn"}, usage={})
    parts = [event("ping"), delta, event("message_stop")]
    messages = await ask(registry, MESSAGES, parts, model="base", **EXPLICIT)
    assert ["q_probe" in each for each in read_events(messages.text)] == [False, True, False]
    for name in ("completed", "incomplete"):
        parts = [event(f"response.{name}", response={"id": "r", "output": [{}]}, sequence_number=9)]
        responses = await ask(registry, RESPONSES, parts, model="base", **EXPLICIT)
        (last,) = read_events(responses.text)
        assert last["response"].pop("q_probe")["probe"] == "good"
        assert chunk(last) in parts[0]


@pytest.mark.parametrize("name", ["output_item.done", "content_part.done", "completed"])
async def test_long_events_do_not_hold_up_others(registry: ProbeRegistry, name: str) -> None:
    """2,000 tokens with 20 logprobs each, of a request for an alias and for the result."""
    logprob = {"token": " a", "logprob": -1.25, "bytes": [32, 97]}
    item = {"logprobs": [{**logprob, "top_logprobs": [logprob] * 20}] * 2000}
    if name == "completed":
        fields: dict[str, Any] = {"response": {"model": "base", "output": [item]}}
    else:
        fields = {"item": item}
    part = event(f"response.{name}", **fields, sequence_number=9).encode()
    good = registry.get("good")
    assert good is not None
    rerank = Rerank(RerankRequest(probes=((good, 1.0),), k=1, beta=0.0))
    rerank.add(rerank.next_prompt(), RESULT)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    writer = ReplyWriter(rerank, send, model="base:good", keep_alive_s=10)
    headers = [(b"content-type", b"text/event-stream")]
    await writer.send({"type": "http.response.start", "status": 200, "headers": headers})
    begun_s = time.thread_time()
    await writer.send({"type": "http.response.body", "body": part, "more_body": False})
    assert time.thread_time() - begun_s < 0.05
    (told,) = read_events(sent[1]["body"].decode())
    if name == "completed":
        assert told["response"].pop("q_probe")["probe"] == "good"
        assert told["response"]["model"] == "base:good"
    else:
        assert told["item"] == item


# What a client may have put before the model's name, in vLLM's order of the fields.
METADATA = {"model": "base", "a": 'x"model":"base",', "b": [{"model": "base"}]}


@pytest.mark.parametrize("model", ["base:good", "base"])
async def test_whole_replies_repeat_the_model_that_was_asked_for(
    registry: ProbeRegistry, model: str
) -> None:
    whole: dict[str, dict[str, Any]] = {
        CHAT: {**CHUNK, "choices": [{"message": {"content": '"model":"base"'}}]},
        RESPONSES: {"id": "r", "metadata": METADATA, "model": "base", "output": []},
        MESSAGES: {"id": "m", "content": [{"text": "é", "model": "base"}], "model": "base"},
    }
    for path, expected in whole.items():
        reply = await ask(registry, path, expected, model=model)
        assert int(reply.headers["content-length"]) == len(reply.content)
        told = reply.json()
        assert told.pop("q_probe", None) is not None or model == "base"
        assert told == {**expected, "model": model}


async def test_streams_repeat_the_model_that_was_asked_for(registry: ProbeRegistry) -> None:
    """In each chunk of chats and completions, and in the events that name it."""
    told = {**CHUNK, "choices": [{"delta": {"content": '{"model":"base"}'}}]}
    parts = [chunk(told), chunk(USAGE), DONE]
    chat = read_events((await ask(registry, CHAT, parts, model="base:good")).text)
    assert chat == [{**each, "model": "base:good"} for each in (told, USAGE)]
    start = event("message_start", message={"content": [], "model": "base"})
    text = event("content_block_delta", delta={"text": "x", "model": "base"})
    messages = read_events((await ask(registry, MESSAGES, [start, text], model="base:good")).text)
    assert messages[0]["message"]["model"] == "base:good"
    assert messages[1]["delta"]["model"] == "base"
    parts = [
        event("response.created", response={"metadata": METADATA, "model": "base"}, model="base"),
        event("response.output_text.delta", delta="x", response=None, other={"model": "base"}),
        event("response.completed", response={"model": "base", "output": [METADATA]}),
    ]
    created, delta, completed = read_events(
        (await ask(registry, RESPONSES, parts, model="base:good")).text
    )
    assert created["response"] == {"metadata": METADATA, "model": "base:good"}
    assert created["model"] == delta["other"]["model"] == "base"
    assert completed["response"] == {"model": "base:good", "output": [METADATA]}


@pytest.mark.parametrize("model", ["base:good", "base"])
async def test_proxies_are_told_not_to_hold_streams_back(
    registry: ProbeRegistry, model: str
) -> None:
    reply = await ask(registry, CHAT, [chunk(CHUNK), DONE], model=model)
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    whole = await ask(registry, CHAT, CHUNK, model=model)
    assert "cache-control" not in whole.headers


async def test_an_error_in_a_stream_passes(registry: ProbeRegistry) -> None:
    parts = [chunk({"error": {"message": "x"}}), DONE]
    text = (await ask(registry, CHAT, parts, model="base:good")).text
    assert text == "".join(parts)
