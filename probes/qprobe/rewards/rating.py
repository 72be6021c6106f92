"""Calling a reward for many completions: in batches, within a time, and what to do if it fails."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, Protocol, runtime_checkable

from qprobe.errors import RewardError, SandboxError
from qprobe.rewards import BatchReward, Reward
from qprobe.rewards.judged import Judged

__all__ = ["NO_REWARD", "Asked", "Rated", "rate"]

Json = dict[str, Any]
# The reason of a completion that could not be rewarded.
NO_REWARD = "no reward"


@runtime_checkable
class _Judge(Protocol):
    """A reward that gives reasons too."""

    def judge(self, fields: Json, completion: str) -> Judged: ...


@dataclass(frozen=True)
class Asked:
    """A completion that is to be rewarded.

    Attributes:
        fields: Of its row.
        completion: Its text.
        place: Which one it is, in words, for an error.
    """

    fields: Json
    completion: str
    place: str


@dataclass(frozen=True)
class Rated:
    """What a reward says of a completion.

    Attributes:
        reward: Finite; None if the reward failed and may.
        reason: Why, in a word or two; None if there is nothing to say.
        error: Of a reward that failed, as it is told on a terminal; it may quote the user.
    """

    reward: float | None
    reason: str | None = None
    error: str | None = None


def rate(
    reward: Reward, batch: Sequence[Asked], *, timeout_s: float | None = None, skip: bool = False
) -> list[Rated]:
    """Reward some completions. Blocks; may be called from several threads.

    If a call for many fails it is made for each alone, so that one is named, and the others count.

    Args:
        reward: Its function, or service.
        batch: Not more than a ``BatchReward`` takes.
        timeout_s: For a call, > 0; None waits for ever. A function that takes longer is not ended,
            as nothing can end a thread: it is left alone.
        skip: Whether a completion that the reward fails for has none, instead of raising.

    Raises:
        RewardError: The reward failed, and the message says for which; with ``skip`` only if no
            code can be run on this machine at all.
    """
    try:
        found = _call_within(timeout_s, partial(_rate, reward, batch))
    except SandboxError:
        raise
    except RewardError as error:
        if len(batch) > 1:
            return [
                rated
                for each in batch
                for rated in rate(reward, [each], timeout_s=timeout_s, skip=skip)
            ]
        said = f"{error} ({batch[0].place})"
        if not skip:
            raise RewardError(said) from error
        return [Rated(None, NO_REWARD, said)]
    return [Rated(each.value, each.reason) for each in found]


def _rate(reward: Reward, batch: Sequence[Asked]) -> list[Judged]:
    pairs = [(each.fields, each.completion) for each in batch]
    if isinstance(reward, BatchReward):
        return [Judged(value) for value in reward.rate(pairs)]
    if isinstance(reward, _Judge):
        return [reward.judge(fields, text) for fields, text in pairs]
    return [Judged(float(reward(fields, text))) for fields, text in pairs]


def _call_within(timeout_s: float | None, function: Callable[[], list[Judged]]) -> list[Judged]:
    if timeout_s is None:
        return function()
    outcome: Future[list[Judged]] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        raise RewardError(f"the reward took longer than {timeout_s:g} s") from None
