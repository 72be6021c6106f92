"""What answers behind the edge: reranked requests here, all others by an upstream itself."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qprobe_server.choice.fields import read_lax
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.edge import body as bodies
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.edge.middleware import Routes
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import (
    ReadingError,
    RequestError,
    ServerError,
    UpstreamError,
    describe_error,
)
from qprobe_server.proxy.answers import Candidate, Format
from qprobe_server.proxy.anthropic import Messages
from qprobe_server.proxy.directory import Directory
from qprobe_server.proxy.events import Event
from qprobe_server.proxy.forwarding import forward
from qprobe_server.proxy.openai import ChatCompletions, Completions
from qprobe_server.proxy.reader import Reader
from qprobe_server.proxy.request_run import RequestRun
from qprobe_server.proxy.sampling import Asked
from qprobe_server.proxy.upstream import explain
from qprobe_server.proxy.watching import Watched

__all__ = ["ROUTES", "Endpoint", "Limits"]

_FORMATS: Mapping[str, Format] = {
    "/v1/chat/completions": ChatCompletions(),
    "/v1/completions": Completions(),
    "/v1/messages": Messages(),
}
ROUTES = Routes(
    reranked=tuple(_FORMATS),
    aliased=("/v1/messages/count_tokens", "/tokenize", "/detokenize"),
    not_reranked=("/v1/responses", "/v1/chat/completions/batch", "/invocations"),
    refuses_other_types=False,
)

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}

_logger = logging.getLogger(__name__)

# Paths of this server's own: what has no route of them, and of those below, is no upstream's.
_OWN = ("/v1/probes", "/playground", "/health", "/metrics", "/openapi.json")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may take.

    Attributes:
        max_body_mib: The most MiB of its body, where that is read, >= 1.
        budget_tokens: The most tokens of the candidates of a reranked one; None: any.
        has_n: Whether the upstreams give several choices when they are asked for several.
        keep_alive_s: A stream begins after so many seconds even if there is no answer yet, > 0.
    """

    max_body_mib: int
    budget_tokens: int | None
    has_n: bool
    keep_alive_s: float


class Endpoint:
    """An ASGI app of all paths.

    Args:
        directory: The upstreams.
        reader: Of candidates.
        metrics: Of the server.
        limits: Of a request.
    """

    def __init__(
        self, directory: Directory, reader: Reader, metrics: RerankMetrics, limits: Limits
    ) -> None:
        self._directory = directory
        self._reader = reader
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        rerank = current_rerank.get()
        try:
            path = _read_path(scope)
            if any(path == each or path.startswith(f"{each}/") for each in _OWN):
                raise RequestError("path: there is no such route", param="path", status=404)
            if rerank is None:
                limits = self._limits
                await forward(self._directory, scope, receive, send, limits.max_body_mib)
            else:
                await self._answer(rerank, scope, receive, send)
        except ServerError as error:
            _log(error)
            await _make_reply(error)(scope, receive, send)

    async def _answer(self, rerank: Rerank, scope: Scope, receive: Receive, send: Send) -> None:
        path = _read_path(scope).rstrip("/")
        await receive()  # the body, which the edge has read, and has left what is not ours
        body = scope[bodies.PARSED]
        run = RequestRun(
            rerank=rerank,
            format=_FORMATS[path],
            body=body,
            reader=self._reader,
            metrics=self._metrics,
            budget_tokens=self._limits.budget_tokens,
        )
        upstream = self._directory.pick(body.get("model"))
        asked = Asked(
            upstream=upstream,
            format=run.format,
            url=upstream.address.locate(path.encode(), scope["query_string"]),
            headers=upstream.headers(scope["headers"]),
            body=body,
            has_n=self._limits.has_n and run.format.has_n,
        )
        async with Watched(run.choose(asked), receive) as choosing:
            if read_lax(body.get("stream"), bool):
                await self._stream(run, choosing, send)
            elif await choosing.wait() and choosing.is_done:
                raw = run.format.join(choosing.result(), body)
                await Response(raw, media_type="application/json")(scope, receive, send)

    async def _stream(
        self, run: RequestRun, choosing: Watched[list[Candidate]], send: Send
    ) -> None:
        """Send a stream, which begins late: until then a failure has a status of its own."""
        has_begun = False
        if not await choosing.wait(self._limits.keep_alive_s):
            await send(_START)
            has_begun = True
            await choosing.wait()
        if not choosing.is_done:
            return  # the client has left
        try:
            winners = choosing.result()
        except ServerError as error:
            if not has_begun:
                raise
            _log(error)
            event = Event("error", json.dumps(_describe(error)[1]))
            await send({"type": "http.response.body", "body": event.dump()})
            return
        if not has_begun:
            await send(_START)
        turns = Turns()
        for chunk in run.format.replay(winners, run.body):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await turns.give_way()
        await send({"type": "http.response.body", "body": b""})


def _read_path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _log(error: ServerError) -> None:
    """Log a failure that is not the client's."""
    is_clients = isinstance(error, RequestError | UpstreamError) and error.status < 500
    if not is_clients:
        _logger.warning("a request failed: %s", explain(error))


def _describe(error: ServerError) -> tuple[int, Any]:
    """Return the status and the JSON body that say an error."""
    match error:
        case RequestError():
            return error.status, error.body()
        case UpstreamError():
            said = describe_error(f"upstream: {error}", status=error.status)
            return error.status, said if error.own is None else _join_own(error.own[1], said)
        case ReadingError():
            return 502, describe_error(str(error), status=502)
        case _:
            return 500, describe_error(str(error), status=500)


def _join_own(raw: bytes, said: dict[str, Any]) -> dict[str, Any]:
    """Return an upstream's own error where clients find it, or with it the one that says so.

    Clients take an event of a stream for an error by its field ``error``, which not every API has.
    """
    try:
        own = json.loads(raw)
    except (ValueError, RecursionError):
        return said
    if not isinstance(own, dict):
        return said
    return own if own.get("error") else {**own, **said}


def _make_reply(error: ServerError) -> Response:
    """Return what a client gets for a failure: the upstream's own words, if it has some."""
    headers = dict(error.headers) if isinstance(error, RequestError) else {}
    if isinstance(error, UpstreamError) and error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UpstreamError) and error.own is not None:
        content_type, raw = error.own
        if content_type:
            headers["content-type"] = content_type
        return Response(raw, error.status, headers)
    status, body = _describe(error)
    return JSONResponse(body, status_code=status, headers=headers)
