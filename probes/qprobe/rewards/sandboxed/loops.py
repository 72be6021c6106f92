"""Event loops of asyncio without the sockets that the sandbox forbids."""

from collections.abc import Awaitable
from functools import cache
from typing import Any

__all__ = ["allow_loops", "complete"]

_loops: list[Any] = []


@cache
def allow_loops() -> type:
    """Have asyncio make loops that work here; return their class."""
    # Not at the top: it takes a tenth of a second, and few answers need it.
    import asyncio
    import selectors

    class Loop(asyncio.SelectorEventLoop):
        """Wakes itself by nothing, as there are no threads and no signals to be woken by."""

        def __init__(self) -> None:
            super().__init__(selectors.SelectSelector())

        def _make_self_pipe(self) -> None:
            self._ssock = self._csock = None

        def _close_self_pipe(self) -> None: ...

    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = Loop

    asyncio.set_event_loop_policy(Policy())
    return Loop


def complete(awaitable: Awaitable[Any]) -> object:
    """Run something to its end, also if a loop runs: the other side waits for nothing else."""
    kind = allow_loops()
    from asyncio import _get_running_loop, _set_running_loop

    async def run() -> object:
        return await awaitable

    loop = next((each for each in _loops if not each.is_running()), None)
    if loop is None:
        loop = kind()
        _loops.append(loop)
    outer = _get_running_loop()
    _set_running_loop(None)
    try:
        result: object = loop.run_until_complete(run())
        return result
    finally:
        _set_running_loop(outer)
