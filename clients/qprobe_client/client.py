"""The clients: the calls of ``Surface``, with and without asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from types import TracebackType
from typing import Any, Self

import httpx

from qprobe_client._calls import Call
from qprobe_client._exchange import http_options, name_failure, read_error, read_json
from qprobe_client._retries import Retries
from qprobe_client._surface import Surface
from qprobe_client.results import Completion, Probe
from qprobe_client.streams import AsyncChatStream, ChatStream

__all__ = ["AsyncClient", "Client"]

_TIMEOUT_S = 600.0
_MAX_RETRIES = 2


class Client(
    Surface[Completion, AbstractContextManager[ChatStream], Probe, list[Probe], list[str], None]
):
    """Talks to a qprobe server.

    Args:
        base_url: Where it listens, with or without ``/v1``.
        api_key: The server's key, if it wants one; to upload and delete probes, its admin key.
        timeout_s: How long the server may be silent, in seconds. It is, while it samples.
        max_retries: How often a call is made again where that is safe.
        transport: Stands in for the network, in tests.

    Raises:
        ArgumentError: The address or the key cannot be used.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        max_retries: int = _MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        options = http_options(base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        self._http = httpx.Client(**options, transport=transport)
        self._max_retries = max_retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, call: Call, parse: Callable[[Any], Any]) -> Any:
        return parse(read_json(call, self._open(call)))

    @contextmanager
    def _stream(self, call: Call) -> Iterator[ChatStream]:
        with (
            closing(self._open(call, stream=True)) as reply,
            closing(ChatStream(call, reply)) as stream,
        ):
            yield stream

    def _open(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """Return a reply of success, with its body unread if it is a stream."""
        request = _build(self._http, call)
        retries = Retries(call, max_retries=self._max_retries)
        while True:
            try:
                reply = self._http.send(request, stream=stream)
                if not reply.is_success:
                    with closing(reply):
                        reply.read()
            except httpx.HTTPError as error:
                pause_s = retries.after_failure(error)
                if pause_s is None:
                    raise name_failure(call, error) from error
            else:
                if reply.is_success:
                    return reply
                pause_s = retries.after_reply(reply.status_code, reply.headers)
                if pause_s is None:
                    raise read_error(reply)
            time.sleep(pause_s)


class AsyncClient(
    Surface[
        Coroutine[Any, Any, Completion],
        AbstractAsyncContextManager[AsyncChatStream],
        Coroutine[Any, Any, Probe],
        Coroutine[Any, Any, list[Probe]],
        Coroutine[Any, Any, list[str]],
        Coroutine[Any, Any, None],
    ]
):
    """As ``Client``, for asyncio: its calls are awaited, its contexts entered by ``async with``."""

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        max_retries: int = _MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = http_options(base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        self._http = httpx.AsyncClient(**options, transport=transport)
        self._max_retries = max_retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: Call, parse: Callable[[Any], Any]) -> Any:
        return parse(read_json(call, await self._open(call)))

    @asynccontextmanager
    async def _stream(self, call: Call) -> AsyncIterator[AsyncChatStream]:
        async with (
            aclosing(await self._open(call, stream=True)) as reply,
            aclosing(AsyncChatStream(call, reply)) as stream,
        ):
            yield stream

    async def _open(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """Return a reply of success, with its body unread if it is a stream."""
        request = _build(self._http, call)
        retries = Retries(call, max_retries=self._max_retries)
        while True:
            try:
                reply = await self._http.send(request, stream=stream)
                if not reply.is_success:
                    async with aclosing(reply):
                        await reply.aread()
            except httpx.HTTPError as error:
                pause_s = retries.after_failure(error)
                if pause_s is None:
                    raise name_failure(call, error) from error
            else:
                if reply.is_success:
                    return reply
                pause_s = retries.after_reply(reply.status_code, reply.headers)
                if pause_s is None:
                    raise read_error(reply)
            await asyncio.sleep(pause_s)


def _build(http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    headers = {} if call.content is None else {"content-type": call.content_type}
    return http.build_request(call.method, call.path, content=call.content, headers=headers)
