"""The candidates that the engine runs, as flat arrays for the work of a step. No engine in here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe_server.vllm_backend.worker.pages import ScorePages

__all__ = ["Candidate", "RowTable"]

Ints = NDArray[np.int64]
# A window that no completion reaches.
_ALL = np.iinfo(np.int64).max


@dataclass(eq=False)
class Candidate:
    """A candidate that the engine runs.

    Attributes:
        address: To whom its scores are sent.
        key: What it is called there.
        probes: Shape (rows,): the probe of each of its rows.
        slots: Shape (rows,): where the scores of each row are.
        ends: Shape (rows,): the offset at which a head's row is done; beyond all others.
        is_open: Shape (rows,): False for a row that is done.
        prompt_end: As ``select_tokens`` takes it.
    """

    address: str
    key: str
    probes: Ints
    slots: Ints
    ends: Ints
    is_open: NDArray[np.bool_]
    prompt_end: int

    @classmethod
    def begin(
        cls,
        *,
        address: str,
        key: str,
        probes: Ints,
        ends: Ints,
        pages: ScorePages,
        prompt_end: int = -1,
    ) -> "Candidate":
        """Begin a candidate; an end of 0 is that of a row that scores the whole completion."""
        return cls(
            address=address,
            key=key,
            probes=probes,
            slots=pages.begin(probes.size),
            ends=np.where(ends > 0, ends, _ALL),
            is_open=np.ones(probes.size, np.bool_),
            prompt_end=prompt_end,
        )


class RowTable:
    """The rows of all candidates, one after the other; made anew when one comes, goes or is done.

    Args:
        candidates: By vLLM's request id.
        sort: ``ProbeWeights.sort``.

    Attributes:
        numbers: The candidates' numbers, by request id.
        candidates: By number.
        prompt_ends: Shape (candidates,): as ``select_tokens`` takes them.
        slots, columns: Shape (rows,): where the scores of a row go, and its probe among ``probes``.
        probes: Shape (p,): the probes of all rows, once each.
    """

    def __init__(
        self, candidates: dict[str, Candidate], sort: Callable[[Ints], tuple[Ints, Ints]]
    ) -> None:
        self.candidates: Sequence[Candidate] = list(candidates.values())
        self.numbers = dict(zip(candidates, range(len(candidates)), strict=True))
        self.prompt_ends = np.array([each.prompt_end for each in self.candidates], np.int64)
        is_open = [each.is_open for each in self.candidates]
        self._counts = np.array([int(each.sum()) for each in is_open], np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        keep = _join(is_open, np.bool_)
        self.slots = _join([each.slots for each in self.candidates], np.int64)[keep]
        probes = _join([each.probes for each in self.candidates], np.int64)[keep]
        self.probes, self.columns = sort(probes)
        ends = _join([each.ends for each in self.candidates], np.int64)[keep]
        self._heads = np.flatnonzero(ends < _ALL)
        self._head_ends = ends[self._heads]
        owners = np.repeat(np.arange(self._counts.size), self._counts)
        self._head_owners = owners[self._heads]

    def pair(self, owners: Ints) -> tuple[Ints, Ints]:
        """Return every pair of a token and a row of its candidate.

        Args:
            owners: Shape (tokens,): each token's candidate.

        Returns:
            (m,) the tokens, and (m,) the rows, of all pairs.
        """
        counts = self._counts[owners]
        tokens = np.repeat(np.arange(owners.size), counts)
        shift = self._firsts[owners] - (np.cumsum(counts) - counts)
        return tokens, np.arange(tokens.size) + np.repeat(shift, counts)

    def find_done(self, owners: Ints, offsets: Ints, *, drafted: bool) -> list[tuple[int, int]]:
        """Return the heads' rows that a step has brought to their end, as (candidate, slot).

        Args:
            owners: Shape (tokens,): each token's candidate; those of one stand together.
            offsets: Shape (tokens,): where it stands in the completion, rising.
            drafted: Whether all of a candidate's tokens but the first may be drafts, which may be
                rejected yet.
        """
        if not self._heads.size:
            return []
        known = np.full(len(self.candidates), -1, np.int64)
        if drafted:
            known[owners[::-1]] = offsets[::-1]
        else:
            known[owners] = offsets
        done = np.flatnonzero(self._head_ends <= known[self._head_owners])
        slots = self.slots[self._heads[done]]
        return list(zip(self._head_owners[done].tolist(), slots.tolist(), strict=True))


def _join(parts: Sequence[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
    return np.concatenate([np.zeros(0, dtype), *parts])
