"""The score of a whole completion from the scores of its tokens."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["pool"]


def pool(scores: NDArray[np.float32], *, pooling: str, window: int | None) -> float:
    """Score of a whole completion from the scores of its tokens.

    For a linear probe the mean of the scores is the score of the mean embedding.

    Args:
        scores: Shape (m + 1,) for m kept tokens; [0] is the prompt's last token, which stands for
            an empty completion and counts for nothing else.
        pooling: ``last`` or ``mean``.
        window: With ``mean``, only the first so many kept tokens count.
    """
    if scores.size == 1 or pooling == "last":
        return float(scores[-1])
    return float(scores[1 : None if window is None else window + 1].mean(dtype=np.float64))
