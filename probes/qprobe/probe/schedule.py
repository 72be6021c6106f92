"""When candidates that fall behind are dropped: what a schedule is, and the rule of one step.

The idea is Speculative Rejection (Sun et al. 2024, arXiv 2410.20290); here a probe's head scores
the beginnings, so that a checkpoint costs no forward pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Schedule", "Step", "check_schedule", "find_losers", "format_schedule", "rank"]


@dataclass(frozen=True)
class Step:
    """One checkpoint.

    Attributes:
        tokens: It compares candidates by their first so many tokens, >= 1.
        keep: So many go on, >= 1.
    """

    tokens: int
    keep: int


Schedule = tuple[Step, ...]


def check_schedule(steps: Sequence[Step]) -> None:
    """Check a schedule: tokens rise from step to step, and keep never does. It may be empty.

    Raises:
        ValueError: It is not valid. Its arguments are the field, such as ``0.keep``, and the text.
    """
    for index, step in enumerate(steps):
        for name in ("tokens", "keep"):
            value = getattr(step, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{index}.{name}", f"must be an integer >= 1, got {value!r}")
    for index, (former, step) in enumerate(pairwise(steps), 1):
        if step.tokens <= former.tokens:
            raise ValueError(
                f"{index}.tokens", f"must rise, got {step.tokens} after {former.tokens}"
            )
        if step.keep > former.keep:
            raise ValueError(f"{index}.keep", f"must not rise, got {step.keep} after {former.keep}")


def format_schedule(steps: Iterable[Step]) -> str:
    """Return a schedule as flags take it: ``16:8,32:4`` keeps 8 after 16 tokens, 4 after 32."""
    return ",".join(f"{step.tokens}:{step.keep}" for step in steps)


def rank(scores: ArrayLike) -> NDArray[np.int64]:
    """Return places along the last axis from the best score down, of equal ones the former first.

    Args:
        scores: Shape (..., candidates), finite.
    """
    return np.argsort(-np.asarray(scores, dtype=np.float64), axis=-1, kind="stable")


def find_losers(scores: Sequence[float], keep: int) -> list[int]:
    """Return who leaves at a checkpoint.

    Args:
        scores: Of the candidates that are still there, finite. Of equal ones the first stays.
        keep: How many stay, >= 1.

    Returns:
        Indices into scores, rising.
    """
    return sorted(rank(scores)[keep:].tolist())
