"""A streamed chat, from its first piece of text to the completion.

The two classes differ in how they wait, and in nothing else: ``_assembly`` reads what comes.
"""

from collections.abc import AsyncGenerator, Generator
from typing import Self

import httpx

from qprobe_client._assembly import Assembly
from qprobe_client._calls import Call
from qprobe_client._exchange import name_failure
from qprobe_client.results import Completion, TextDelta

__all__ = ["AsyncChatStream", "ChatStream"]


class ChatStream:
    """Pieces of text as they come; made by ``Client.stream_chat``.

    Iterating raises:
        APIError: The server failed while it streamed.
        TransportError: It broke off.
        ReplyError: It sent what is not a chat.
    """

    def __init__(self, call: Call, reply: httpx.Response) -> None:
        self._assembly = Assembly(call, reply.headers)
        self._deltas = self._read(call, reply)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextDelta:
        return next(self._deltas)

    def get_final_completion(self) -> Completion:
        """Read what is left, and return the whole; raises as iterating does.

        Raises:
            ClientError: The stream was closed before its end.
        """
        for _ in self:
            pass
        return self._assembly.completion()

    def close(self) -> None:
        """End the iteration; ``Client.stream_chat`` does it."""
        self._deltas.close()

    def _read(self, call: Call, reply: httpx.Response) -> Generator[TextDelta]:
        try:
            for piece in reply.iter_bytes():
                yield from self._assembly.feed(piece)
                if self._assembly.is_done:
                    return
        except httpx.HTTPError as error:
            raise name_failure(call, error) from error
        self._assembly.finish()


class AsyncChatStream:
    """As ``ChatStream``, for ``async for``; made by ``AsyncClient.stream_chat``."""

    def __init__(self, call: Call, reply: httpx.Response) -> None:
        self._assembly = Assembly(call, reply.headers)
        self._deltas = self._read(call, reply)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        return await anext(self._deltas)

    async def get_final_completion(self) -> Completion:
        """Read what is left, and return the whole; raises as ``ChatStream`` does."""
        async for _ in self:
            pass
        return self._assembly.completion()

    async def aclose(self) -> None:
        """End the iteration; ``AsyncClient.stream_chat`` does it."""
        await self._deltas.aclose()

    async def _read(self, call: Call, reply: httpx.Response) -> AsyncGenerator[TextDelta]:
        try:
            async for piece in reply.aiter_bytes():
                for delta in self._assembly.feed(piece):
                    yield delta
                if self._assembly.is_done:
                    return
        except httpx.HTTPError as error:
            raise name_failure(call, error) from error
        self._assembly.finish()
