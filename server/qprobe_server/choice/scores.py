"""The per-token scores of candidates, in host memory, keyed by position. No engine in here.

A score is written where its token stands in the completion, so a position that the engine computes
again (preemption, a rejected draft token) overwrites itself and nothing is counted twice.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenScores", "pool"]

_FIRST_WIDTH = 256
# A table of more numbers than this, 16 MiB of float32, is given back once nothing runs.
_KEPT_SIZE = 1 << 22


@dataclass
class _Record:
    probes: Sequence[int]
    slots: list[int] | None  # a row of the table for each probe while the engine runs it
    scores: list[NDArray[np.float32]] | None  # copies of its own once the engine has finished it


class TokenScores:
    """Scores of running candidates in one table, of finished ones until they are taken.

    Offset 0 is the prompt's last token (the embedding of the empty completion) and offset i the
    i-th token of the completion. An offset never written reads as NaN.

    Args:
        keep_finished_s: How long a finished candidate is kept for whoever takes or drops it, as
            everybody does who lives; longer than its slowest sibling may run.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self, *, keep_finished_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_finished_s = keep_finished_s
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._finished_s: OrderedDict[str, float] = OrderedDict()  # when, the oldest first
        self._empty_table()

    def _empty_table(self) -> None:
        self._free: list[int] = []
        self._table = np.full((0, _FIRST_WIDTH), np.nan, dtype=np.float32)  # (slots, offsets)
        self._written = np.zeros(0, dtype=np.int64)  # (slots,): offsets below are in use

    def __len__(self) -> int:
        """Return the number of candidates held, running and finished."""
        return len(self._records)

    def start(self, key: str, probes: Sequence[int]) -> list[int]:
        """Begin a candidate scored by the probes of these indices; return a slot for each.

        Raises:
            KeyError: There is a candidate of this key.
        """
        if key in self._records:
            raise KeyError(key)
        while len(self._free) < len(probes):
            slots, width = self._table.shape
            grown = max(16, slots)
            self._free = [*range(slots + grown - 1, slots - 1, -1), *self._free]
            self._table = np.vstack([self._table, np.full((grown, width), np.nan, np.float32)])
            self._written = np.concatenate([self._written, np.zeros(grown, np.int64)])
        given = [self._free.pop() for _ in probes]
        self._records[key] = _Record(probes, given, None)
        return given

    def write(
        self,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> None:
        """Store values[i] at offset offsets[i] >= 0 of slot slots[i]; all of shape (m,)."""
        longest = int(offsets.max(initial=0)) + 1
        width = self._table.shape[1]
        if longest > width:
            more = max(width, longest - width)
            extra = np.full((self._table.shape[0], more), np.nan, np.float32)
            self._table = np.hstack([self._table, extra])
        self._table[slots, offsets] = values
        np.maximum.at(self._written, slots, offsets + 1)

    def finish(self, key: str) -> None:
        """Move a candidate out of the table; no more is written to it. Unknown keys are ignored."""
        record = self._records.get(key)
        if record is None or record.slots is None:
            return
        record.scores = self._release(record.slots)
        record.slots = None
        now_s = self._clock()
        self._finished_s[key] = now_s
        while next(iter(self._finished_s.values())) < now_s - self._keep_finished_s:
            self.drop(next(iter(self._finished_s)))

    def read(self, key: str, length: int) -> tuple[Sequence[int], NDArray[np.float32]] | None:
        """Return a candidate's probes and its scores at offsets 0 to length.

        Returns:
            The probes' indices and shape (probes, length + 1), NaN where the engine has not
            computed a position; None if the candidate is unknown.
        """
        record = self._records.get(key)
        if record is None:
            return None
        held = record.scores
        if held is None:
            held = [self._table[slot] for slot in record.slots or ()]
        scores = np.full((len(record.probes), length + 1), np.nan, dtype=np.float32)
        for row, each in zip(scores, held, strict=True):
            count = min(each.size, length + 1)
            row[:count] = each[:count]
        return record.probes, scores

    def take(self, key: str, length: int) -> tuple[Sequence[int], NDArray[np.float32]] | None:
        """Remove a candidate; return what ``read`` does."""
        found = self.read(key, length)
        self.drop(key)
        return found

    def num_positions(self, key: str) -> int:
        """Return how many offsets of a candidate are in use: the tokens generated after them."""
        record = self._records.get(key)
        if record is None:
            return 0
        if record.scores is not None:
            return max((each.size for each in record.scores), default=0)
        return max((int(self._written[slot]) for slot in record.slots or ()), default=0)

    def drop(self, key: str) -> None:
        """Forget a candidate, running or finished. Unknown keys are ignored."""
        record = self._records.pop(key, None)
        if record is None:
            return
        self._finished_s.pop(key, None)
        self._release(record.slots or ())

    def _release(self, slots: Sequence[int]) -> list[NDArray[np.float32]]:
        scores = []
        for slot in slots:
            used = int(self._written[slot])
            scores.append(self._table[slot, :used].copy())
            self._table[slot, :used] = np.nan
            self._written[slot] = 0
            self._free.append(slot)
        if len(self._free) == len(self._table) and self._table.size > _KEPT_SIZE:
            self._empty_table()
        return scores


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
