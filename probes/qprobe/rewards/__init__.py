"""What an answer is worth: a number for a row and a completion. Knows no HTTP and no engine."""

from typing import Any, Protocol

from qprobe.errors import RewardError
from qprobe.rewards.answers import NumericReward, RegexReward
from qprobe.rewards.code import TestsReward
from qprobe.rewards.custom import FunctionReward

__all__ = ["Reward", "make_reward"]

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


def make_reward(spec: str) -> Reward:
    """Make a reward by its name.

    Args:
        spec: ``tests``, ``numeric``, ``regex``, ``python:MODULE:FUNCTION`` or
            ``python:FILE.py:FUNCTION``.

    Raises:
        RewardError: There is no such reward, or its function cannot be imported.
        SandboxError: ``tests``, on a machine that cannot run code safely.
    """
    if spec == "tests":
        return TestsReward()
    if spec == "numeric":
        return NumericReward()
    if spec == "regex":
        return RegexReward()
    kind, _, where = spec.partition(":")
    if kind == "python":
        return FunctionReward(where)
    raise RewardError(
        f"reward must be tests, numeric, regex, python:MODULE:FUNCTION or python:FILE.py:FUNCTION, "
        f"got {spec!r}"
    )
