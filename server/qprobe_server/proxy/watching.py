"""Work for a client that may leave before it is done."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Generic, TypeVar

from starlette.types import Receive

__all__ = ["Watched"]

_T = TypeVar("_T")


class Watched(Generic[_T]):
    """Work that ends when the client leaves; a context manager that leaves nothing running.

    Args:
        work: What is done for it.
        receive: Of its request, whose body has been read.
    """

    def __init__(self, work: Awaitable[_T], receive: Receive) -> None:
        self._work = asyncio.ensure_future(work)
        self._leaving = asyncio.create_task(_until_left(receive))

    async def __aenter__(self) -> "Watched[_T]":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving.cancel()
        self._work.cancel()
        await asyncio.gather(self._leaving, self._work, return_exceptions=True)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the work is done or the client has left; return whether one of these is so."""
        either: set[asyncio.Future[Any]] = {self._work, self._leaving}
        done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    @property
    def is_done(self) -> bool:
        """Whether there is a result; else the client has left, if ``wait`` says so."""
        return self._work.done()

    def result(self) -> _T:
        """Return what came of the work, or raise it."""
        return self._work.result()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
