"""The end of an engine.

Relies on vLLM 0.32.0: ``EngineCoreProc.run_engine_core`` (v1/engine/core.py) and ``WorkerProc``
(v1/executor/multiproc_executor.py) set handlers for SIGINT, and unblock nothing, so that
``edge/lifetime.py`` can mask it for them; ``serve_http`` (entrypoints/launchers/launcher.py) puts
uvicorn's server at ``app.state.server`` and returns once that has ended; ``lifespan``
(entrypoints/launchers/utils/server_utils.py) freezes the heap.
"""

import asyncio
import gc
from collections.abc import Callable

from qprobe_server.edge.lifetime import GRACE_S, kill_children

__all__ = ["stop_engine"]

_ENGINE_ENDS_S = 2


async def stop_engine(shutdown: Callable[[float], None], *, let_end_s: float) -> None:
    """Stop an engine that has nothing more to do.

    Its workers take seconds to tear down what ends with them anyway; vLLM warns of each process
    that it then kills.

    Args:
        shutdown: Of the engine; takes the seconds after which it kills by itself.
        let_end_s: Seconds that are left of those that the user gives the stop, >= 0.
    """
    patience_s = max(let_end_s, _ENGINE_ENDS_S)
    # In a thread, so that a second signal is heard.
    stopping = asyncio.get_running_loop().run_in_executor(None, shutdown, patience_s + GRACE_S)
    await asyncio.wait({stopping}, timeout=patience_s)
    if not stopping.done():
        kill_children()
    await stopping
    gc.unfreeze()  # vLLM's heap, or a library complains at the exit of what was not freed
