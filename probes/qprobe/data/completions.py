"""Completions that come with their prompts."""

import math
from dataclasses import dataclass
from typing import Any

from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["GivenCompletion", "read_completions", "read_reward"]

Json = dict[str, Any]


@dataclass(frozen=True)
class GivenCompletion:
    """A completion that came with its prompt.

    Attributes:
        text: May be empty.
        reward: Finite, or None: to be rewarded.
    """

    text: str
    reward: float | None


def read_completions(value: object) -> tuple[GivenCompletion, ...]:
    """Read the field ``completions``: strings, or objects of ``text`` and perhaps ``reward``.

    Raises:
        RowError: It is something else, or empty.
    """
    if not isinstance(value, list) or not value:
        raise RowError("completions", f"must be a non-empty list, got {show(value)}")
    return tuple(_read_completion(f"completions[{i}]", each) for i, each in enumerate(value))


def read_reward(field: str, value: object) -> float | None:
    """Return a reward, None if there is none; true is 1, false 0.

    Raises:
        RowError: It is neither null nor a finite number.
    """
    if value is None:
        return None
    number = math.nan
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
    if not math.isfinite(number):
        raise RowError(field, f"must be a finite number or null, got {show(value)}")
    return number


def _read_completion(field: str, value: object) -> GivenCompletion:
    if isinstance(value, str):
        return GivenCompletion(read_text(field, value), None)
    if not isinstance(value, dict):
        raise RowError(field, f"must be a string or an object, got {show(value)}")
    if "text" not in value:
        raise RowError(f"{field}.text", f"is missing from {show(value)}")
    for name in sorted(value.keys() - {"text", "reward"}):
        raise RowError(f"{field}.{name}", "is not a field of a completion: text, reward")
    text = read_text(f"{field}.text", value["text"])
    return GivenCompletion(text, read_reward(f"{field}.reward", value.get("reward")))
