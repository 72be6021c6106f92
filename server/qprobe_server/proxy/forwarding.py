"""Passes a request to an upstream and its reply back, byte for byte, as they come."""

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
from starlette.types import Message, Receive, Scope, Send

from qprobe_server.choice.schemas import show
from qprobe_server.edge import body as bodies
from qprobe_server.errors import RequestError
from qprobe_server.proxy.directory import Directory
from qprobe_server.proxy.headers import to_client
from qprobe_server.proxy.metrics import LeftError, SentRequest
from qprobe_server.proxy.upstream import Upstream, check_redirect
from qprobe_server.proxy.watching import Watched

__all__ = ["forward"]

_MODEL = "/v1/models/"

_logger = logging.getLogger(__name__)


async def forward(
    directory: Directory, scope: Scope, receive: Receive, send: Send, max_body_mib: int
) -> None:
    """Have an upstream answer a request.

    Args:
        directory: The upstreams; with several of them a JSON body is read for its model.
        scope: Of the request, as ``receive`` and ``send``.
        receive: Gives its body.
        send: To the client.
        max_body_mib: The most MiB that a body may have, where it is read.

    Raises:
        RequestError: 404 or 413; nothing was sent.
        UpstreamError: It cannot be reached; nothing was sent.
    """
    model: object = None
    if len(directory) > 1:
        if bodies.PARSED in scope:
            model = scope[bodies.PARSED].get("model")
        elif scope["method"] == "POST" and bodies.may_be_json(scope):
            raw = await bodies.read(scope, receive, max_mib=max_body_mib)
            if raw is None:
                return  # the client has left
            receive = bodies.replay(raw, receive)
            model = _find_model(raw)
        elif scope["path"].startswith(_MODEL):
            model = scope["path"].removeprefix(_MODEL)
        _check_model(directory, model)
    body = _Body(await receive(), receive)
    if body.has_left:
        return
    async with Watched(_exchange(directory.pick(model), scope, body, send), body.receive) as work:
        await work.wait()
        if work.is_done:
            work.result()


async def _exchange(upstream: Upstream, scope: Scope, body: "_Body", send: Send) -> None:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    raw_path = raw_path.removeprefix(scope.get("root_path", "").encode())
    request = httpx.Request(
        scope["method"],
        upstream.address.locate(raw_path, scope["query_string"]),
        headers=upstream.headers(scope["headers"]),
        content=body.content,
    )
    try:
        with upstream.meter.watch() as sent:
            await _pass_on(upstream, request, sent, send)
    except LeftError:
        return
    except httpx.HTTPError:
        # An end of the reply would look like its own; without one uvicorn closes the connection.
        _logger.warning("an upstream's reply to %s broke off", scope["path"])


async def _pass_on(
    upstream: Upstream, request: httpx.Request, sent: SentRequest, send: Send
) -> None:
    response = await upstream.send(request)
    sent.status = response.status_code
    try:
        check_redirect(response)
        headers = to_client(response.headers.raw)
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        async for chunk in response.aiter_raw():
            sent.note_bytes()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


class _Body:
    """The body of a request, as it comes.

    Args:
        first: The request's first message.
        receive: Gives the others.
    """

    def __init__(self, first: Message, receive: Receive) -> None:
        self.has_left = first["type"] == "http.disconnect"
        self._first = first.get("body", b"")
        self._receive = receive
        self._is_read = asyncio.Event()
        if not first.get("more_body", False):
            self._is_read.set()

    @property
    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """What to send: None if there is no body."""
        if self._is_read.is_set():
            return self._first or None
        return self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        yield self._first
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise LeftError
            yield message.get("body", b"")
            more = message.get("more_body", False)
        self._is_read.set()

    async def receive(self) -> Message:
        """Return the next message after the body."""
        await self._is_read.wait()
        return await self._receive()


def _find_model(raw: bytes) -> object:
    try:
        return bodies.parse(raw).get("model")
    except RequestError:
        return None  # the upstream knows what it takes


def _check_model(directory: Directory, model: object) -> None:
    if isinstance(model, str) and not directory.is_model(model):
        raise RequestError(
            f"model: {show(model)} does not exist; models: {', '.join(directory.names)}",
            param="model",
            status=404,
        )
