"""Tables in Markdown, their cells with 95 % intervals over problems."""

import numpy as np
from numpy.typing import NDArray

from qprobe.evaluation.bootstrap import Bootstrap

__all__ = ["Table", "tell_difference", "tell_mean"]

Floats = NDArray[np.float64]


class Table:
    """A table in Markdown; ``str`` gives it."""

    def __init__(self, *head: str) -> None:
        self._lines = [self._join(head), f"|{' --- |' * len(head)}"]

    def add(self, *cells: str) -> None:
        """Add a row."""
        self._lines.append(self._join(cells))

    @staticmethod
    def _join(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cells)} |"

    def __str__(self) -> str:
        return "\n".join(self._lines)


def tell_mean(bootstrap: Bootstrap, values: Floats) -> str:
    """Return the mean of values, (prompts,), NaN left out; "" if there are none."""
    if not np.isfinite(values).any():
        return ""
    mean = bootstrap.mean(values)
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def tell_difference(bootstrap: Bootstrap, values: Floats, others: Floats) -> str:
    """Return the mean of the differences, paired by problem; "" if there are none."""
    if not np.isfinite(values - others).any():
        return ""
    mean = bootstrap.mean(values - others)
    return f"{mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"
