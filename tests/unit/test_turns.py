"""Long work of many tasks, in turns with everybody else's."""

import asyncio
import time

from qprobe_server.edge.turns import Turns

WORK_S = 0.004


async def test_many_tasks_that_work_share_one_turn() -> None:
    """A turn ends at the first look after 10 ms, so that it has at most three times 4 ms.

    Those that find it spent do not come all at once in the next one.
    """
    in_this_iteration, most = 0, 0

    def forget() -> None:
        nonlocal in_this_iteration
        in_this_iteration = 0

    async def work() -> None:
        nonlocal in_this_iteration, most
        await Turns().give_way()
        if not in_this_iteration:
            asyncio.get_running_loop().call_soon(forget)
        in_this_iteration += 1
        most = max(most, in_this_iteration)
        until_s = time.monotonic() + WORK_S
        while time.monotonic() < until_s:
            pass

    await asyncio.gather(*(work() for _ in range(20)))
    assert most <= 3
