"""How the scores of tokens become that of a completion."""

import numpy as np
import pytest

from qprobe.probe.pooling import pool


@pytest.mark.parametrize(
    ("scores", "pooling", "window", "expected"),
    [
        ([9.0, 1.0, 2.0, 6.0], "last", None, 6.0),
        ([9.0, 1.0, 2.0, 6.0], "mean", None, 3.0),
        ([9.0, 1.0, 2.0, 6.0], "mean", 2, 1.5),
        ([9.0, 1.0, 2.0, 6.0], "mean", 99, 3.0),
        ([9.0], "last", None, 9.0),
        ([9.0], "mean", 4, 9.0),
    ],
)
def test_pooling(scores: list[float], pooling: str, window: int | None, expected: float) -> None:
    assert pool(np.array(scores, np.float32), pooling=pooling, window=window) == expected
