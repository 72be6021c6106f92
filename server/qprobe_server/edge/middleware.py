"""The ASGI edge: reads our fields out of a request, and writes ours into its reply.

Everything else of a request goes to vLLM's app untouched. Stands inside vLLM's own middleware, so
that a request without a valid key never gets here.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qprobe_server.choice.request import Rerank, current_rerank, resolve, resolve_alias
from qprobe_server.edge.access_log import settle_request_id
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

__all__ = ["RERANKED", "AppState", "RerankMiddleware"]

# Routes whose answers are reranked.
_COMPLETIONS = "/v1/completions"
RERANKED = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    _COMPLETIONS,
    "/v1/responses",
    "/v1/messages",
)
# Routes that take a model's alias, and sample nothing.
_ALIASED = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")

_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True)
class AppState:
    """What requests need; stands at ``app.state.qprobe``.

    Attributes:
        settings: The server's flags.
        registry: The loaded probes.
        is_model: Whether a name is a base model or LoRA adapter that vLLM serves.
    """

    settings: Settings
    registry: ProbeRegistry
    is_model: Callable[[str], bool]


class RerankMiddleware:
    """Sets ``current_rerank`` around each request that is to be reranked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not _is_json_post(scope):
            await self._app(scope, receive, send)
            return
        raw = await _read_body(receive)
        if raw is None:
            return  # the client left before it had sent its request
        state: AppState = scope["app"].state.qprobe
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        try:
            raw, rerank, body = _prepare(path, raw, state)
        except RequestError as error:
            await JSONResponse(error.body(), status_code=error.status)(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-length"] = str(len(raw))
        if body is not None:
            settle_request_id(scope, headers, body.get("request_id"))
        scope = {**scope, "headers": headers.raw}
        replay = _replay(raw, receive)
        if rerank is None:
            await self._app(scope, replay, send)
            return
        token = current_rerank.set(rerank)
        reply = _ReplyWriter(rerank, send, keep_alive_s=state.settings.keep_alive_s)
        try:
            await self._app(scope, replay, reply.send)
        finally:
            reply.close()
            current_rerank.reset(token)
            # For the access log, where there is one.
            scope.get("qprobe_log", {}).update(_summarize(rerank))


def _summarize(rerank: Rerank) -> dict[str, Any]:
    weights = {probe.name: weight for probe, weight in rerank.probes}
    return {
        "probe": weights if rerank.is_mix else next(iter(weights)),
        "k": rerank.k,
        "sampled_tokens": sum(each.sampled_tokens for each in rerank.results.values()),
    }


def _is_json_post(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    content_type = Headers(scope=scope).get("content-type", "")
    return content_type.split(";", maxsplit=1)[0].strip().lower() == "application/json"


async def _read_body(receive: Receive) -> bytes | None:
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(raw: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _prepare(
    path: str, raw: bytes, state: AppState
) -> tuple[bytes, Rerank | None, dict[str, Any] | None]:
    """Return the body for vLLM, how the request is reranked, if it is, and its fields, if read."""
    if path not in RERANKED and path not in _ALIASED and b'"q_probe"' not in raw:
        return raw, None, None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return raw, None, None  # vLLM's own error says what is wrong with it
    if not isinstance(body, dict):
        return raw, None, None
    if path in RERANKED:
        rerank = resolve(
            body,
            settings=state.settings,
            registry=state.registry,
            is_model=state.is_model,
            reads_best_of=path == _COMPLETIONS,
        )
        return (raw if rerank is None else json.dumps(body).encode()), rerank, body
    if body.get("q_probe") is not None:
        raise RequestError(f"q_probe: {path} samples nothing to rerank", param="q_probe")
    if path in _ALIASED and resolve_alias(body, state.registry, state.is_model) is not None:
        return json.dumps(body).encode(), None, body
    return raw, None, body


class _ReplyWriter:
    """Passes a reply on, and puts our ``q_probe`` object into it.

    A JSON reply gets it as a field. A stream gets it only if the request carried the object: in
    chat and text completions as a last chunk with empty ``choices``, in Responses on the response
    of the last event, in Messages on the ``message_delta`` event. A silent stream is kept alive.
    """

    def __init__(self, rerank: Rerank, send: Send, *, keep_alive_s: float) -> None:
        self._rerank = rerank
        self._send = send
        self._keep_alive_s = keep_alive_s
        self._held: Message | None = None  # start of a JSON reply, until its length is known
        self._body = b""
        self._first_chunk: bytes | None = None
        self._alive: asyncio.Task[None] | None = None
        self._last_sent_s = 0.0

    async def send(self, message: Message) -> None:
        """Take one message of vLLM's app."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._alive is not None:
            await self._stream(message)
        elif self._held is not None:
            await self._collect(message)
        else:
            await self._send(message)

    def close(self) -> None:
        """Stop the keep-alive."""
        if self._alive is not None:
            self._alive.cancel()

    async def _start(self, message: Message) -> None:
        content_type = Headers(raw=message["headers"]).get("content-type", "")
        if message["status"] == 200 and content_type.startswith("application/json"):
            self._held = message
            return
        await self._send(message)
        if content_type.startswith("text/event-stream"):
            self._last_sent_s = asyncio.get_running_loop().time()
            self._alive = asyncio.create_task(self._keep_alive())

    async def _collect(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        assert self._held is not None
        # A Responses request in the background is answered before it is sampled: no results.
        # A client that left gets `null` from vLLM.
        reply = json.loads(self._body) if self._rerank.results else None
        if isinstance(reply, dict):
            reply["q_probe"] = self._rerank.reply()
            self._body = json.dumps(reply).encode()
            MutableHeaders(raw=self._held["headers"])["content-length"] = str(len(self._body))
        await self._send(self._held)
        await self._send({"type": "http.response.body", "body": self._body})

    async def _stream(self, message: Message) -> None:
        body = message.get("body", b"")
        if self._rerank.explicit and self._rerank.results:
            message = {**message, "body": self._with_result(body)}
        if self._first_chunk is None and body.startswith(b"data: {"):
            self._first_chunk = body
        self._last_sent_s = asyncio.get_running_loop().time()
        if not message.get("more_body", False):
            self.close()
        await self._send(message)

    def _with_result(self, body: bytes) -> bytes:
        if body.endswith(_DONE) and self._first_chunk is not None:
            return body[: -len(_DONE)] + self._last_chunk(self._first_chunk) + _DONE
        event, newline, data = body.partition(b"\n")
        if not newline or not event.startswith(b"event: "):
            return body
        name = event.removeprefix(b"event: ").strip()
        if name == b"message_delta":
            fields = _parse_data(data)
            fields["q_probe"] = self._rerank.reply()
        elif name in (b"response.completed", b"response.incomplete"):
            fields = _parse_data(data)
            fields["response"]["q_probe"] = self._rerank.reply()
        else:
            return body
        return event + b"\n" + _format_data(fields)

    def _last_chunk(self, first: bytes) -> bytes:
        like = _parse_data(first)
        same = ("id", "object", "created", "model")
        chunk: dict[str, Any] = {name: like[name] for name in same if name in like}
        return _format_data({**chunk, "choices": [], "q_probe": self._rerank.reply()})

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        # The client may leave at any moment; vLLM's side of the request learns of it by itself.
        with contextlib.suppress(OSError):
            while True:
                silent_s = loop.time() - self._last_sent_s
                if silent_s < self._keep_alive_s:
                    await asyncio.sleep(self._keep_alive_s - silent_s)
                    continue
                self._last_sent_s = loop.time()
                await self._send(
                    {"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True}
                )


def _parse_data(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(data.partition(b"\n")[0].removeprefix(b"data: "))
    return fields


def _format_data(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"
