"""What the fields of a probe may be. Needs no torch: command lines are to be checked at once."""

import math
from typing import Literal

__all__ = ["OBJECTIVES", "Layer", "Pooling", "is_beta"]

Layer = int | Literal["final"]
Pooling = Literal["last", "mean"]
OBJECTIVES = ("mse", "ce", "pg", "ppo", "bt", "dpo")


def is_beta(value: object) -> bool:
    """Whether a value can be the temperature of a choice: a finite number >= 0, no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # an integer beyond every float
        return False
