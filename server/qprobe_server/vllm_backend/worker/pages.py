"""The per-token scores of running candidates, in host memory, in pages. No engine in here.

A score is written where its token stands in the completion, so a position that the engine computes
again (preemption, a rejected draft token) overwrites itself and nothing is counted twice. A row
takes memory for the tokens that it has, whatever the others have.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScorePages"]

_PAGE = 128  # offsets a page: 512 bytes
_FEWEST_PAGES = 256
# Pages beyond this many, 16 MiB, are given back once none is in use.
_KEPT_PAGES = 1 << 15

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class ScorePages:
    """Rows of scores, each by the offset of its token.

    Offset 0 is the prompt's last token (the embedding of the empty completion) and offset i the
    i-th token of the completion. An offset never written reads as NaN.
    """

    def __init__(self) -> None:
        self._empty()

    def _empty(self) -> None:
        self._pages = np.empty((0, _PAGE), np.float32)
        self._free_pages: list[int] = []
        self._page_of = np.full((0, 1), -1, np.int32)  # (slots, pages of a row), -1: none yet
        self._sizes = np.zeros(0, np.int64)  # (slots,): offsets below are in use
        self._free_slots: list[int] = []

    @property
    def num_bytes(self) -> int:
        """How much memory the scores have, in use or kept."""
        return self._pages.nbytes + self._page_of.nbytes

    def begin(self, count: int) -> Ints:
        """Begin ``count`` rows; return their slots."""
        while len(self._free_slots) < count:
            slots, width = self._page_of.shape
            more = max(64, slots // 2)
            self._page_of = np.concatenate([self._page_of, np.full((more, width), -1, np.int32)])
            self._sizes = np.concatenate([self._sizes, np.zeros(more, np.int64)])
            self._free_slots += range(slots + more - 1, slots - 1, -1)
        return np.array([self._free_slots.pop() for _ in range(count)], dtype=np.int64)

    def write(self, slots: Ints, offsets: Ints, values: Floats) -> None:
        """Store values[i] at offset offsets[i] >= 0 of slot slots[i]; all of shape (m,)."""
        blocks = offsets // _PAGE
        width = self._page_of.shape[1]
        longest = int(blocks.max(initial=-1)) + 1
        if longest > width:
            more = max(longest - width, width)
            self._page_of = np.pad(self._page_of, ((0, 0), (0, more)), constant_values=-1)
        pages = self._page_of[slots, blocks]
        if (pages < 0).any():
            self._add_pages(slots[pages < 0], blocks[pages < 0])
            pages = self._page_of[slots, blocks]
        self._pages[pages, offsets % _PAGE] = values
        np.maximum.at(self._sizes, slots, offsets + 1)

    def _add_pages(self, slots: Ints, blocks: Ints) -> None:
        width = self._page_of.shape[1]
        places = np.unique(slots * width + blocks)
        while len(self._free_pages) < places.size:
            count = len(self._pages)
            more = max(_FEWEST_PAGES, count // 2)
            self._pages = np.concatenate([self._pages, np.empty((more, _PAGE), np.float32)])
            self._free_pages += range(count + more - 1, count - 1, -1)
        given = [self._free_pages.pop() for _ in range(places.size)]
        self._pages[given] = np.nan
        self._page_of.reshape(-1)[places] = given

    def read(self, slot: int) -> Floats:
        """Return a copy of a row: its scores up to the last offset that was written."""
        size = int(self._sizes[slot])
        pages = self._page_of[slot, : -(-size // _PAGE)]
        row = self._pages[pages].reshape(-1)[:size]
        absent = np.flatnonzero(pages < 0)  # a page none of whose offsets were ever written
        for page in absent:
            row[page * _PAGE : (page + 1) * _PAGE] = np.nan
        return row

    def end(self, slots: Ints) -> None:
        """Give the slots of rows back."""
        if not slots.size:
            return
        used = self._page_of[slots]
        self._free_pages += used[used >= 0].tolist()
        self._page_of[slots] = -1
        self._sizes[slots] = 0
        self._free_slots += slots.tolist()
        is_idle = len(self._free_slots) == len(self._sizes)
        if is_idle and len(self._pages) > _KEPT_PAGES:
            self._empty()
