"""The sums of a served probe: what the API process keeps of its terms, and what the workers get.

A worker scores tokens by rows, which are linear in a state; the API process pools a row's scores
and adds the terms up, with the functions that training and evaluation take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qprobe import Reading, Terms
from qprobe.probe.confidence import Calibration
from qprobe.probe.pooling import pool, pool_gated
from qprobe.probe.values import Source

__all__ = ["MAX_ROWS", "Gate", "ServedConfidence", "ServedSum", "count_rows", "list_rows"]

# How often a token may be scored for one request.
MAX_ROWS = 64

Scores = Sequence[NDArray[np.float32]]
Floats = NDArray[np.float64]


class Gate(NamedTuple):
    """A gate without its vectors; as in ``GateTerm``."""

    layer: Source
    segments: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ServedSum:
    """``Terms`` without their vectors.

    Attributes:
        rows: What the workers call its rows: one of each reading, then of each gate the gate's
            and the value's.
        readings, gates: In the order of the rows.
        numbers: As in ``Terms``.
        bias: What is added to the terms; 0 where a row has it.
        reads_logprobs: As in ``Terms``.
    """

    rows: tuple[int, ...]
    readings: tuple[Reading, ...]
    gates: tuple[Gate, ...]
    numbers: Mapping[str, float]
    bias: float
    reads_logprobs: bool

    @classmethod
    def of(cls, terms: Terms, rows: Sequence[int]) -> "ServedSum":
        """Return the sum of terms whose rows the workers call so."""
        return cls(
            rows=tuple(rows),
            readings=tuple(terms.readings),
            gates=tuple(Gate(each.layer, each.segments) for each in terms.gates),
            numbers=dict(terms.numbers),
            bias=0.0 if terms.states else terms.bias,
            reads_logprobs=terms.reads_logprobs,
        )

    def add_up(self, scores: Scores, numbers: Mapping[str, float]) -> float:
        """Return the score of a completion.

        Args:
            scores: Of its tokens by each row, shape (m + 1,) as for ``pool``. NaN makes NaN.
            numbers: As ``read_numbers`` gives them.
        """
        split = len(self.readings)
        total = self.bias
        for reading, row in zip(self.readings, scores[:split], strict=True):
            total += pool(row, pooling=reading.pooling, window=reading.window)
        with np.errstate(invalid="ignore"):
            for gate, (opened, values) in zip(self.gates, self._pair_gates(scores), strict=True):
                total += pool_gated(opened, values, segments=gate.segments)
        return total + sum(weight * numbers[name] for name, weight in self.numbers.items())

    def add_up_tokens(self, scores: Scores, length: int) -> Floats:
        """Return the part of each of ``length`` tokens: shape (length,).

        The sum over the readings, and of each gate sigmoid(g) r. Numbers are of no token.
        """
        total = np.zeros(length)
        for row in scores[: len(self.readings)]:
            total += row[1:]
        with np.errstate(invalid="ignore"):
            for opened, values in self._pair_gates(scores):
                total += np.exp(-np.logaddexp(0.0, -opened[1:].astype(np.float64))) * values[1:]
        return total

    def _pair_gates(self, scores: Scores) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        split = len(self.readings)
        return list(zip(scores[split::2], scores[split + 1 :: 2], strict=True))


@dataclass(frozen=True, eq=False)
class ServedConfidence:
    """``Confidence`` with what it adds up; ``own`` is None where that is the probe's score."""

    calibration: Calibration
    own: ServedSum | None

    def expect(self, scores: Sequence[float]) -> list[float]:
        """Return the reward to be expected of each score, which is finite."""
        expected: list[float] = self.calibration.apply(scores).tolist()
        return expected


def count_rows(terms: Terms) -> int:
    """Return how many rows terms take."""
    return len(terms.states) + 2 * len(terms.gates)


def list_rows(terms: Terms) -> list[tuple[Source, bytes]]:
    """Return the rows of terms, in the order of ``ServedSum.rows``.

    Returns:
        The layer, and the bytes of hidden_size + 1 float32: the vector, then the bias. The first
        reading's row has the bias of the sum, so that its tokens' scores make that of the whole.
    """
    rows = []
    for index, state in enumerate(terms.states):
        rows.append((state.reading.layer, _join(state.weight, 0.0 if index else terms.bias)))
    for gate in terms.gates:
        rows.append((gate.layer, _join(gate.gate, gate.gate_bias)))
        rows.append((gate.layer, _join(gate.value, gate.value_bias)))
    return rows


def _join(weight: NDArray[np.float32], bias: float) -> bytes:
    return weight.tobytes() + np.float32(bias).tobytes()
