"""Ends open requests with an error when the server stops, and refuses new ones.

To the app an ended request looks as if its client had left, which it knows how to handle; the
client gets an error that it can tell from an answer.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["OpenRequests", "StoppingMiddleware"]

# What is answered at once, and to the end. Others may wait for the engine, as a GET of
# /v1/responses/ID does that streams a response from the background.
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_AT_ONCE = (
    "/health",
    "/ping",
    "/metrics",
    "/load",
    "/version",
    "/v1/models",
    "/v1/probes",
    "/playground",
    "/docs",
    "/redoc",
    "/openapi.json",
)
# How an event may end.
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST_END = max(map(len, _ENDS))


class OpenRequests:
    """The requests that the server is at; used on the event loop."""

    def __init__(self) -> None:
        self._exchanges: set[_Exchange] = set()
        self._is_stopping = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._is_stopping

    def add(self, exchange: "_Exchange") -> None:
        """Note that a request has come."""
        self._exchanges.add(exchange)
        self._is_idle.clear()

    def remove(self, exchange: "_Exchange") -> None:
        """Note that a request has its reply."""
        self._exchanges.remove(exchange)
        if not self._exchanges:
            self._is_idle.set()

    async def stop(self, *, let_end_s: float, let_leave_s: float) -> None:
        """Refuse new requests, wait for the open ones, and end those that are left.

        Args:
            let_end_s: Seconds for requests to end by themselves, >= 0.
            let_leave_s: Seconds for the app to let go of those that were ended, >= 0.
        """
        self._is_stopping = True
        await self._wait_until_idle(let_end_s)
        for exchange in self._exchanges:
            exchange.end()
        await self._wait_until_idle(let_leave_s)

    async def _wait_until_idle(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), timeout_s)


class StoppingMiddleware:
    """Stands around all that may take long to answer.

    Args:
        app: What answers.
        requests: Gets each request that is open.
    """

    def __init__(self, app: ASGIApp, *, requests: OpenRequests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _is_answered_at_once(scope):
            await self._app(scope, receive, send)
            return
        if self._requests.is_stopping:
            await JSONResponse(_error(), status_code=503)(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        self._requests.add(exchange)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # Once ended, the app was told that its client has left: it ends as it likes, by an
            # error too, and the client gets ours below.
            if not exchange.has_ended:
                raise
        finally:
            self._requests.remove(exchange)
            exchange.close()
        if exchange.has_ended:
            await exchange.send_error(scope)


def _is_answered_at_once(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] in _SAFE_METHODS and any(
        path == each or path.startswith(f"{each}/") for each in _AT_ONCE
    )


class _Exchange:
    """One request and its reply, which can be ended before the reply is whole."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._received: asyncio.Future[Message] | None = None
        self._ended = asyncio.Event()
        self._has_started = False
        self._is_stream = False
        self._is_whole = False
        self._is_plain = True
        self._tail = _ENDS[0]  # of what was sent

    @property
    def has_ended(self) -> bool:
        """Whether the client is to get an error, and nothing more of the app."""
        return self._ended.is_set()

    def end(self) -> None:
        """End it, unless its reply is on its way and no stream."""
        if not self._is_whole and (self._is_stream or not self._has_started):
            self._ended.set()

    async def receive(self) -> Message:
        """Return the next message of the client; that it left, once the request was ended.

        Those who only look, as ``Request.is_disconnected``, cancel this where it first waits. What
        comes later is kept for their next look, which then waits for nothing.
        """
        received = self._received
        if received is None:
            received = self._received = asyncio.ensure_future(self._receive())
        if not (received.done() or self.has_ended):
            ended = asyncio.ensure_future(self._ended.wait())
            either: set[asyncio.Future[Any]] = {received, ended}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
        if self.has_ended:
            return {"type": "http.disconnect"}
        if self._received is received:  # else somebody else looks, and has it too
            self._received = None
        return received.result()

    def close(self) -> None:
        """Wait for the client no more."""
        if self._received is not None:
            self._received.cancel()

    async def send(self, message: Message) -> None:
        """Pass a message of the app on, unless the request was ended."""
        if self.has_ended:
            return
        if message["type"] == "http.response.start":
            self._has_started = True
            headers = Headers(raw=message["headers"])
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
            self._is_plain = headers.get("content-encoding", "identity") == "identity"
        else:
            sent = message.get("body", b"")[-_LONGEST_END:]
            self._tail = (self._tail + sent)[-_LONGEST_END:]
            self._is_whole = not message.get("more_body", False)
        await self._send(message)

    async def send_error(self, scope: Scope) -> None:
        """Send the rest of the reply: an error.

        A stream that is compressed, or ends in the midst of an event, as one may that was passed
        on, cannot have one: it breaks off, by which uvicorn closes the connection.
        """
        if self._is_stream and not (self._is_plain and self._tail.endswith(_ENDS)):
            return
        if self._is_stream:
            # As clients of OpenAI and of Anthropic read it: one by the data, one by the name.
            body = b"event: error\ndata: " + json.dumps(_error()).encode() + b"\n\n"
            await self._send({"type": "http.response.body", "body": body})
        else:
            await JSONResponse(_error(), status_code=503)(scope, self._receive, self._send)


def _error() -> dict[str, Any]:
    """Return OpenAI's error object, with what Anthropic's clients read beside it."""
    error = {
        "message": "the server is stopping",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
    }
    return {"type": "error", "error": error}
