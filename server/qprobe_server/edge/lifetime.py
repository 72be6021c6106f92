"""From the first moment of a server to its end: what signals do, and in which order things stop.

Knows no engine: ``vllm_backend/lifetime.py`` has the end of that.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import psutil
from fastapi import FastAPI

from qprobe_server.edge.stopping import OpenRequests

__all__ = ["GRACE_S", "ending_at_once", "kill_children", "serve_until_signalled"]

# For what is in the midst of ending: the app's side of a request, connections.
GRACE_S = 5
_CHECK_STARTED_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Have a signal end the process and all its children at once, whatever this thread waits for.

    There is nothing yet that would have to end in order. Processes that are started meanwhile never
    get the SIGINT of Ctrl-C, which a terminal sends to all of them: a mask is inherited. Else the
    engine would drop its requests before the server can tell their clients. Signals to a forked
    process are its own, and nothing is left of this in it.
    """
    reader, writer = socket.socketpair()
    os.set_blocking(writer.fileno(), False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()  # before the mask, so that there is a thread to take the signal
    resource_tracker.ensure_running()  # likewise: multiprocessing unmasks SIGINT when it starts it
    handlers = {each: signal.signal(each, _leave_to_watcher) for each in _SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        writer.shutdown(socket.SHUT_WR)  # closing it ends nothing while a forked process has it
        watcher.join()
        writer.close()
        reader.close()


def _leave_to_watcher(*_: object) -> None:
    """Handle a signal in Python's way, by doing nothing: the number has gone to the watcher."""


def _take_signals_back() -> None:
    """Make signals to a forked process its own, which else go to its parent's watcher or loop."""
    signal.set_wakeup_fd(-1)
    for each in _SIGNALS:
        if signal.getsignal(each) is _leave_to_watcher:
            signal.signal(each, signal.SIG_DFL)


os.register_at_fork(after_in_child=_take_signals_back)


def _watch(reader: socket.socket) -> None:
    while numbers := reader.recv(1):
        if numbers[0] in _SIGNALS:
            _end_at_once(numbers[0])


def _end_at_once(number: int) -> None:
    """End this process and its children, without leaving it to them to say something."""
    kill_children()
    sys.stderr.write("\nqprobe: stopped\n")
    sys.stderr.flush()
    os._exit(128 + number)


def kill_children() -> None:
    """End all processes that this one has started, and theirs."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended, or is another user's
            if not _is_cleaning_up(child):
                child.kill()


def _is_cleaning_up(child: psutil.Process) -> bool:
    """Whether a child cleans up after the others, and ends by itself."""
    try:
        return "resource_tracker" in " ".join(child.cmdline())
    except psutil.Error:  # a sandbox may hide it
        return False


async def serve_until_signalled(
    app: FastAPI,
    serve: Coroutine[Any, Any, Awaitable[None] | None],
    requests: OpenRequests,
    *,
    let_end_s: float,
    on_ready: Callable[[], None],
) -> float:
    """Serve until a signal, or until the server ends by itself.

    The first signal ends the open requests, while the engine still lives; a second one does not
    wait for anything.

    Args:
        app: What is served.
        serve: Serves it until uvicorn's server, which it puts at ``app.state.server``, should exit;
            returns what is left to do then, if there is something.
        requests: Those that are open.
        let_end_s: Seconds for open requests to end by themselves, >= 0.
        on_ready: Called when the server listens.

    Returns:
        Seconds that are left of ``let_end_s``, for the engine; all, if no signal came.
    """
    serving = asyncio.create_task(serve)
    while not serving.done() and not _has_started(app):
        await asyncio.wait({serving}, timeout=_CHECK_STARTED_S)
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in _SIGNALS:  # instead of vLLM's handlers, which stop the engine first
        loop.add_signal_handler(each, _on_signal, signalled, each)
    if not serving.done():
        on_ready()
    waiting = asyncio.create_task(signalled.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    begun_s = loop.time()
    if signalled.is_set():
        await requests.stop(let_end_s=let_end_s, let_leave_s=GRACE_S)
        app.state.server.should_exit = True
    left = await serving
    if left is not None:
        await left
    return max(0.0, let_end_s - (loop.time() - begun_s)) if signalled.is_set() else let_end_s


def _has_started(app: FastAPI) -> bool:
    server = getattr(app.state, "server", None)
    return server is not None and bool(server.started)


def _on_signal(signalled: asyncio.Event, number: int) -> None:
    if signalled.is_set():
        _end_at_once(number)
    sys.stderr.write("\nqprobe: stopping; once more to stop at once\n")
    signalled.set()
