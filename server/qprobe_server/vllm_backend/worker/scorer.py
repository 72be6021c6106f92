"""Scores the tokens of running candidates, step by step, and sends the scores away.

No engine in here: ``scoring.py`` tells what begins, what has ended, and what a step has computed.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe_server.vllm_backend.mail import Outbox
from qprobe_server.vllm_backend.worker.copies import CopyQueue, start_copy, upload
from qprobe_server.vllm_backend.worker.pages import ScorePages
from qprobe_server.vllm_backend.worker.running import Candidate, RowTable
from qprobe_server.vllm_backend.worker.step import Step, StepTokens, select_tokens
from qprobe_server.vllm_backend.worker.weights import ProbeWeights, WantedScores

__all__ = ["Scorer"]

Ints = NDArray[np.int64]


class Scorer:
    """The candidates that the engine runs, and their scores until these are sent.

    Args:
        layers: The exposed inner layers, rising.
        device: Where the states are.
        copies: Of the worker.
        outbox: Takes the scores; None where another worker makes the same.
        drafted: Whether the engine drafts tokens, which may be rejected after they were scored.

    Attributes:
        weights: The loaded probes.
        num_held: Candidates whose scores are held.
    """

    def __init__(
        self,
        layers: Sequence[int],
        device: torch.device,
        copies: CopyQueue,
        outbox: Outbox | None,
        *,
        drafted: bool,
    ) -> None:
        self.weights = ProbeWeights(layers, device)
        self.num_held = 0
        self._device = device
        self._copies = copies
        self._outbox = outbox
        self._drafted = drafted
        self._pages = ScorePages()
        self._running: dict[str, Candidate] = {}  # by vLLM's request id
        self._table: RowTable | None = None  # of the running ones; None when one came or went

    @property
    def is_busy(self) -> bool:
        """Whether a candidate runs."""
        return bool(self._running)

    def load(self, probes: Sequence[tuple[int, int | str, bytes]]) -> None:
        """Set probes; see ``ProbeWeights.load``."""
        self.weights.load(probes)
        self._table = None  # which has them sorted by layer

    def begin(
        self,
        request_id: str,
        address: str,
        key: str,
        rows: Sequence[int],
        ends: Sequence[int],
        prompt_end: int = -1,
    ) -> None:
        """Note a candidate that begins, unless it runs already.

        Args:
            request_id: vLLM's.
            address: To whom the scores are sent.
            key: What they call the candidate.
            rows: The probe of each of its rows.
            ends: How many leading tokens each row is wanted of; 0 for all.
            prompt_end: Position of the last token before the completion; -1 where it is the
                engine's prompt that ends there.
        """
        if request_id in self._running:
            return
        self._running[request_id] = Candidate.begin(
            address=address,
            key=key,
            probes=np.array(rows, np.int64),
            ends=np.array(ends, np.int64),
            pages=self._pages,
            prompt_end=prompt_end,
        )
        self.num_held += 1
        self._table = None

    def end(self, request_id: str) -> None:
        """Note that a request has ended; one that is no candidate is ignored."""
        candidate = self._running.pop(request_id, None)
        if candidate is not None:
            self._table = None
            self._copies.then(partial(self._send_all, candidate))

    def read(self, step: Step) -> None:
        """Begin to score the tokens of a step; the scores are stored when the host has them."""
        if self._table is None:
            self._table = RowTable(self._running, self.weights.sort)
        table = self._table
        tokens = select_tokens(step, table.numbers, table.prompt_ends)
        of_tokens, rows = table.pair(tokens.owners)
        if not rows.size:
            return
        wanted = WantedScores(of_tokens, table.columns[rows], table.probes)
        places = upload(tokens.rows, self._device)
        product = start_copy(self.weights.score(step.states, places, wanted))
        # The device's positions are right even where accepted draft tokens are not known yet here.
        positions = start_copy(step.positions[places])
        store = partial(self._store, table, tokens, rows, wanted, product, positions)
        self._copies.after_copies(self._device, store)

    def _store(
        self,
        table: RowTable,
        tokens: StepTokens,
        rows: Ints,
        wanted: WantedScores,
        product: Tensor,
        positions: Tensor,
    ) -> None:
        """Store the scores of a step, once they are on the host."""
        offsets = positions.numpy() - tokens.prompt_ends
        scores = wanted.pick(product.numpy())
        self._pages.write(table.slots[rows], offsets[wanted.tokens], scores)
        for number, slot in table.find_done(tokens.owners, offsets, drafted=self._drafted):
            self._send_head(table.candidates[number], slot)

    def _send_head(self, candidate: Candidate, slot: int) -> None:
        (row,) = np.flatnonzero(candidate.slots == slot).tolist()
        if not candidate.is_open[row]:
            return  # of a step that began before the head was done
        candidate.is_open[row] = False
        self._table = None
        if self._outbox is not None:
            scores = self._pages.read(slot)[: candidate.ends[row] + 1]
            self._outbox.send_head(candidate.address, candidate.key, row, scores)

    def _send_all(self, candidate: Candidate) -> None:
        """Send what is known of a candidate that has ended, and forget it."""
        rows = [self._pages.read(slot) for slot in candidate.slots]
        self._pages.end(candidate.slots)
        self.num_held -= 1
        if self._outbox is not None:
            self._outbox.send_all(candidate.address, candidate.key, rows)
