"""Long work on the event loop, in turns with everybody else's."""

import asyncio
import time
from weakref import WeakKeyDictionary

__all__ = ["Turns"]

_TURN_S = 0.01


class _Round:
    """One iteration of a loop: whoever works in it shares one turn's time."""

    def __init__(self) -> None:
        self._begun_s: float | None = None

    def is_over(self) -> bool:
        """Whether the iteration's time is spent; the first who asks begins it."""
        now_s = time.monotonic()
        if self._begun_s is None:
            self._begun_s = now_s
            asyncio.get_running_loop().call_soon(self._end)
        return now_s - self._begun_s > _TURN_S

    def _end(self) -> None:
        self._begun_s = None


_rounds: WeakKeyDictionary[asyncio.AbstractEventLoop, _Round] = WeakKeyDictionary()


class Turns:
    """One task's part in them.

    Many tasks with long work, each with a hundredth of a second of its own, would together hold the
    loop for as many hundredths: they share one.
    """

    def __init__(self) -> None:
        self._round = _rounds.setdefault(asyncio.get_running_loop(), _Round())

    async def give_way(self) -> None:
        """Let the others run if this turn has lasted for a hundredth of a second.

        Returns in a turn that is not over: of many that wait for the next one, those that find it
        spent wait on.
        """
        while self._round.is_over():  # noqa: ASYNC110  the loop's next round is what is waited for
            await asyncio.sleep(0)
