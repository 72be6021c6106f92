"""Long work on the event loop, in turns with everybody else's."""

import asyncio
import time

__all__ = ["Turns"]

_TURN_S = 0.01


class Turns:
    """Counts the time of one task's turn, which begins when this is made."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()

    async def give_way(self) -> None:
        """Let the others run if this turn has lasted for a hundredth of a second."""
        if time.monotonic() - self._begun_s > _TURN_S:
            await asyncio.sleep(0)
            self._begun_s = time.monotonic()
