"""What the fields of a probe may be. Needs no torch: command lines are to be checked at once."""

import math
from typing import Literal

__all__ = ["NUMBERS", "OBJECTIVES", "Layer", "Pooling", "Source", "is_beta"]

Layer = int | Literal["final"]
# ``embedding``: the vector of an embeddings endpoint, and no layer of a model that we run.
Source = Layer | Literal["embedding"]
Pooling = Literal["last", "mean", "max"]
OBJECTIVES = ("mse", "ce", "pg", "ppo", "bt", "dpo")
# What a probe may read of a completion beside states; ``qprobe.probe.pooling`` defines them.
NUMBERS = ("mean_logprob", "total_logprob", "length", "log_length", "cut")


def is_beta(value: object) -> bool:
    """Whether a value can be the temperature of a choice: a finite number >= 0, no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # an integer beyond every float
        return False
