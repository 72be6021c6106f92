"""Rewards completions in threads, beside whatever else is done; knows no engine.

The threads are daemons, so that no reward that hangs keeps a command from ending.
"""

import argparse
import os
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

from qprobe.rewards import BatchReward, Reward, make_reward
from qprobe.rewards.rating import Asked, Rated, rate
from qprobe_server.commands.printing import warn
from qprobe_server.commands.reward_service import HttpReward, is_url

__all__ = ["HowToReward", "Rewarding", "already_rated", "find_reward", "try_out"]

Json = dict[str, Any]
_HTTP_WORKERS = 8
# The value of the header ``Authorization`` for a reward service: not a flag, which others can see.
_AUTHORIZATION = "QPROBE_REWARD_AUTHORIZATION"
_TRIED_ON = "This is an answer."
# vLLM's CPU worker binds this process to cores of its own; rewards may use all that it began with.
_CORES = os.sched_getaffinity(0)


@dataclass(frozen=True)
class HowToReward:
    """What the command line says of rewarding.

    Attributes:
        workers: Calls at a time, >= 1.
        timeout_s: As in ``rate``, as is ``skip``.
        skip: Whether a completion that the reward fails for is left without.
    """

    workers: int
    timeout_s: float | None = None
    skip: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace, reward: Reward | None) -> Self:
        """Read the flags; ``reward`` says how many calls at a time suit it."""
        workers: int = args.reward_workers or os.cpu_count() or 1
        if args.reward_workers is None and isinstance(reward, HttpReward):
            workers = _HTTP_WORKERS
        elif args.reward_workers is None and isinstance(reward, BatchReward):
            # One that takes many, a reward model perhaps, was not written for threads.
            workers = 1 if reward.batch_size > 1 else workers
        # A service is given its time, and then gives up by itself.
        timeout_s = None if isinstance(reward, HttpReward) else args.reward_timeout
        return cls(workers, timeout_s, skip=args.on_reward_error == "skip")


def find_reward(args: argparse.Namespace) -> Reward:
    """Make the reward that the command line names.

    Raises:
        RewardError: It cannot be made.
    """
    if not is_url(args.reward):
        return make_reward(args.reward, batch_size=args.reward_batch)
    authorization = os.environ.get(_AUTHORIZATION)
    limit = {} if args.reward_timeout is None else {"total_s": args.reward_timeout}
    return HttpReward(
        args.reward,
        max_concurrent=args.reward_workers or _HTTP_WORKERS,
        batch_size=args.reward_batch,
        headers={"authorization": authorization} if authorization else None,
        **limit,
    )


def try_out(reward: Reward, how: HowToReward, fields: Json, completion: str | None) -> None:
    """Call a reward once, in a thread as it will be, before anything dear is begun.

    Args:
        reward: Of the user's own; any other is not called.
        how: To reward; with ``skip`` a failure is only told.
        fields: Of the first row.
        completion: Of it; None takes a few words.

    Raises:
        RewardError: It failed.
    """
    kind = reward.name.partition(":")[0]
    if kind not in ("python", "http"):
        return
    text = _TRIED_ON if completion is None else completion
    with Rewarding(reward, how) as rewarding:
        rated = rewarding.add(fields, text, f"tried on the first row and {text!r:.60}")
        rewarding.flush()
        rated.result()


def already_rated(reward: float) -> Future[Rated]:
    """Return what ``Rewarding.add`` does, of a reward that is known."""
    rated: Future[Rated] = Future()
    rated.set_result(Rated(reward))
    return rated


class Rewarding:
    """Calls a reward in threads of its own. A context manager, which does not wait for them.

    Attributes:
        errors: Of the completions that were left without a reward, as told on a terminal.
    """

    def __init__(self, reward: Reward | None, how: HowToReward) -> None:
        self._reward, self._how = reward, how
        self._batch: list[tuple[Asked, Future[Rated]]] = []
        self._batch_size = reward.batch_size if isinstance(reward, BatchReward) else 1
        self._failed: SimpleQueue[BaseException] = SimpleQueue()
        self._tasks: SimpleQueue[list[tuple[Asked, Future[Rated]]] | None] = SimpleQueue()
        self.errors: list[str] = []
        for _ in range(how.workers):
            Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in range(self._how.workers):
            self._tasks.put(None)
        if self.errors:
            warn(
                f"the reward failed for some completions, which have none: {len(self.errors)}; the "
                f"first: {self.errors[0]}"
            )

    def add(self, fields: Json, completion: str, place: str) -> Future[Rated]:
        """Begin to reward a completion; ``place`` says which it is.

        Raises:
            RewardError: The reward has failed for an earlier one.
        """
        self._raise_failure()
        rated: Future[Rated] = Future()
        self._batch.append((Asked(fields, completion, place), rated))
        if len(self._batch) == self._batch_size:
            self.flush()
        return rated

    def flush(self) -> None:
        """Begin what waits for its batch to be full."""
        if self._batch:
            self._tasks.put(self._batch)
            self._batch = []

    def _raise_failure(self) -> None:
        if not self._failed.empty():
            raise self._failed.get()

    def _work(self) -> None:
        with suppress(OSError):  # where it is not allowed they run beside the engine
            os.sched_setaffinity(0, _CORES)
        while (task := self._tasks.get()) is not None:
            self._do(task)

    def _do(self, task: list[tuple[Asked, Future[Rated]]]) -> None:
        assert self._reward is not None  # the command line has checked that there is one
        try:
            found = rate(
                self._reward,
                [asked for asked, _ in task],
                timeout_s=self._how.timeout_s,
                skip=self._how.skip,
            )
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._failed.put(error)
            for _, rated in task:
                rated.set_exception(error)
            return
        for (_, rated), each in zip(task, found, strict=True):
            if each.error is not None:
                self.errors.append(each.error)
            rated.set_result(each)
