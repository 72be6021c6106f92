"""From the scores of a completion's tokens, and from its numbers, to what a term adds to its score.

Training, evaluation and the server all take these functions, so that what is served is what was
measured.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qprobe.probe.values import NUMBERS

__all__ = ["LOGPROB_NUMBERS", "pool", "pool_gated", "read_numbers"]

# Those of NUMBERS that log-probabilities are needed for.
LOGPROB_NUMBERS = frozenset({"mean_logprob", "total_logprob"})

Floats = NDArray[np.float64]


def pool(scores: ArrayLike, *, pooling: str, window: int | None) -> float:
    """Score of a whole completion from the scores of its tokens.

    For a linear probe the mean of the scores is the score of the mean embedding.

    Args:
        scores: Shape (m + 1,) for m kept tokens; [0] is the prompt's last token, which stands for
            an empty completion and counts for nothing else.
        pooling: ``last``, ``mean`` or ``max``.
        window: With ``mean``, only the first so many kept tokens count; None takes all. With
            ``max`` it is the largest mean over so many consecutive ones, and the mean over all
            where there are fewer.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 1 or pooling == "last":
        return float(values[-1])
    kept = values[1:]
    if pooling == "mean":
        return float(kept[:window].mean())
    assert window is not None
    if kept.size <= window:
        return float(kept.mean())
    sums = np.cumsum(np.concatenate([[0.0], kept]))
    return float((sums[window:] - sums[:-window]).max() / window)


def pool_gated(gates: ArrayLike, values: ArrayLike, *, segments: Sequence[int]) -> float:
    """Return sum of sigmoid(g) r over sum of sigmoid(g) (SWIFT, arXiv 2505.12225).

    Args:
        gates: Shape (m + 1,) as in ``pool``: g of each token.
        values: Likewise r.
        segments: Ends of segments, >= 1, rising: g and r are then the means over the tokens from
            one end to the next, and over those that are left after the last, and a segment counts
            as often as it has tokens. Empty: every token is one of its own.
    """
    gate, value = (np.asarray(each, dtype=np.float64) for each in (gates, values))
    if gate.size == 1:
        return float(value[0])
    gate, value = gate[1:], value[1:]
    counts = np.ones(gate.size)
    if segments:
        starts = [0, *(end for end in segments if end < gate.size)]
        counts = np.diff([*starts, gate.size]).astype(np.float64)
        gate, value = (np.add.reduceat(each, starts) / counts for each in (gate, value))
    # At a common factor, so that gates far below 0 do not make 0 / 0.
    logs = -np.logaddexp(0.0, -gate)
    weights = counts * np.exp(logs - logs.max())
    return float((weights * value).sum() / weights.sum())


def read_numbers(*, logprob: float, length: int, cut: bool) -> dict[str, float]:
    """Return the numbers of a completion, by their names in ``NUMBERS``.

    Args:
        logprob: Sum of the log-probabilities, in nats, of the tokens that were generated, the stop
            token among them, under the model itself (temperature 1, nothing filtered).
        length: How many they are, >= 0.
        cut: Whether a limit of length ended it, or what is looked at is its beginning only.
    """
    values = (
        logprob / max(length, 1),
        logprob,
        float(length),
        math.log(max(length, 1)),
        float(cut),
    )
    return dict(zip(NUMBERS, values, strict=True))
