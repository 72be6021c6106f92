"""Intervals by resampling prompts: prompts, not samples, are what a new data set would redraw."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import EvaluationError

__all__ = ["Bootstrap", "Interval"]

NUM_RESAMPLES = 2_000
LEVEL = 0.95
_SEED = 20240714

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self, name: str) -> dict[str, float]:
        """Return the estimate under ``name``, ``low`` and ``high``."""
        return {name: self.value, "low": self.low, "high": self.high}


class Bootstrap:
    """Percentile intervals (Efron 1979) over 2,000 resamples of the prompts, of fixed seed.

    The same resamples serve every quantity, so that two methods are compared on the same prompts.
    With few prompts the intervals are too narrow: for a mean of 20 normal values they hold the
    truth 92 % of the time, of 50 values 94 %.

    Args:
        num_prompts: How many values there are of a quantity.
        questions: Shape (prompts,), from 0 up: what each asks. Those that ask the same tell about
            the same, and are resampled together. None: each asks something else.

    Raises:
        EvaluationError: There are fewer than 2 different prompts.
    """

    def __init__(self, num_prompts: int, questions: NDArray[np.int64] | None = None) -> None:
        if questions is None:
            questions = np.arange(num_prompts)
        num_questions = int(questions.max(initial=-1)) + 1
        if num_questions < 2:
            raise EvaluationError(
                "prompts", f"must be at least 2 different ones for an interval, got {num_questions}"
            )
        rng = np.random.default_rng(_SEED)
        even = np.full(num_questions, 1 / num_questions)
        drawn = rng.multinomial(num_questions, even, size=NUM_RESAMPLES)
        # How often each prompt is in each resample: (resamples, prompts).
        self._counts = drawn[:, questions].astype(float)

    def mean(self, values: Floats) -> Interval:
        """Return the mean of one value a prompt, shape (prompts,); NaN leaves a prompt out."""
        there = np.isfinite(values)
        return self.ratio(np.where(there, values, 0.0), there.astype(float))

    def ratio(self, numerators: Floats, denominators: Floats) -> Interval:
        """Return sum(numerators) / sum(denominators), both of shape (prompts,).

        Resamples with a denominator of 0 are left out.

        Raises:
            EvaluationError: The denominators sum to 0.
        """
        if denominators.sum() == 0:
            raise EvaluationError("denominators", "sum to 0, so that there is no ratio")
        below = self._counts @ denominators
        draws = (self._counts @ numerators)[below != 0] / below[below != 0]
        return _interval(numerators.sum() / denominators.sum(), draws)

    def mean_of_runs(self, values: Floats) -> Interval:
        """Return the mean of values of shape (runs, prompts), both of which are resampled."""
        num_runs = len(values)
        rng = np.random.default_rng((_SEED, num_runs))
        runs = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=NUM_RESAMPLES)
        sizes = num_runs * self._counts.sum(axis=1)
        draws = ((runs @ values) * self._counts).sum(axis=1) / sizes
        return _interval(values.mean(), draws)


def _interval(value: float, draws: Floats) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
