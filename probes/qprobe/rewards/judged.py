"""What a reward says of an answer beside the number."""

from typing import NamedTuple

__all__ = ["Judged"]


class Judged(NamedTuple):
    """A reward with its reason.

    Attributes:
        value: Finite.
        reason: Why it is not the best, in a word or two; None if there is nothing to say.
    """

    value: float
    reason: str | None = None
