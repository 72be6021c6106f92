"""What an answer is worth: a number for a row and a completion. Knows no HTTP and no engine."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from qprobe.errors import RewardError
from qprobe.rewards.answers import NumericReward, RegexReward
from qprobe.rewards.code import TestsReward
from qprobe.rewards.custom import FunctionReward

__all__ = ["BatchReward", "Reward", "make_reward"]

Json = dict[str, Any]


class Reward(Protocol):
    """Rewards completions.

    Attributes:
        name: As ``make_reward`` takes it, or for a person to read.
    """

    name: str

    def check(self, fields: Json) -> None:
        """Check that a row has what the reward needs.

        Raises:
            RowError: It has not; the field is named.
        """

    def __call__(self, fields: Json, completion: str) -> float:
        """Return a finite reward. Blocks; safe to call from several threads.

        Raises:
            RewardError: There is none, and not because the answer is bad.
        """


@runtime_checkable
class BatchReward(Reward, Protocol):
    """A reward that may be asked for several completions in one call.

    Attributes:
        batch_size: How many at most, >= 1.
    """

    batch_size: int

    def rate(self, batch: Sequence[tuple[Json, str]]) -> list[float]:
        """Return a finite reward for each pair of a row's fields and a completion; as a call."""


def make_reward(spec: str, *, batch_size: int | None = None) -> Reward:
    """Make a reward by its name.

    Args:
        spec: ``tests``, ``numeric``, ``regex``, ``python:MODULE:FUNCTION`` or
            ``python:FILE.py:FUNCTION``.
        batch_size: Of a function that takes many completions a call, >= 1; None takes its default.

    Raises:
        RewardError: There is no such reward, its function cannot be imported, or it takes one
            completion a call and a batch size was given.
        SandboxError: ``tests``, on a machine that cannot run code safely.
    """
    kind, _, where = spec.partition(":")
    if kind == "python":
        return FunctionReward(where, batch_size=batch_size)
    if batch_size is not None:
        raise RewardError(f"reward {spec!r} takes one completion a call, not batches")
    if spec == "tests":
        return TestsReward()
    if spec == "numeric":
        return NumericReward()
    if spec == "regex":
        return RegexReward()
    raise RewardError(
        f"reward must be tests, numeric, regex, python:MODULE:FUNCTION or python:FILE.py:FUNCTION, "
        f"got {spec!r}"
    )
