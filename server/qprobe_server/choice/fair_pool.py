"""Threads that many requests share, of which none can keep the others waiting for long."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

__all__ = ["FairPool", "Share"]

T = TypeVar("T")


class Share:
    """What one request has waiting, and how long threads have worked for it. The pool's own."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.used_s = 0.0


class FairPool:
    """Works next for the request that it has worked for least, whoever else came before.

    Args:
        num_workers: Jobs at a time, >= 1.
        name: Of its threads.
    """

    def __init__(self, num_workers: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(num_workers, name)
        self._lock = Lock()
        self._waiting: list[Share] = []  # those with jobs

    def submit(self, share: Share, call: Callable[[], T]) -> "Future[T]":
        """Have something called; what is cancelled before it has begun is not."""
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 whoever waits for it is told
                    future.set_exception(error)

        with self._lock:
            if not share.jobs:
                self._waiting.append(share)
            share.jobs.append(work)
        # One for each job, but which job it will be is settled when a thread is free.
        self._threads.submit(self._work_once)
        return future

    def _work_once(self) -> None:
        with self._lock:
            share = min(self._waiting, key=lambda each: each.used_s)
            work = share.jobs.popleft()
            if not share.jobs:
                self._waiting.remove(share)
        begun_s = time.monotonic()
        work()
        with self._lock:
            share.used_s += time.monotonic() - begun_s
