"""The scores of a prompt's candidates, as the worker sends them; ``ScoringMixin`` is its side."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qprobe.probe.pooling import pool
from qprobe.probe.values import Pooling
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.errors import ScoringError
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.mail import Floats, Inbox, Scores

__all__ = ["Engine", "Row", "ScoreClient", "Taken"]

# A candidate's scores, by probe the scores of its tokens, and how many positions were computed.
Taken = tuple[list[float], list[list[float]], int]

# How often a wait for the worker looks whether the engine still lives.
_CHECK_ENGINE_S = 1.0
# The worker sends within a step or two of the engine; a server that is swamped may take longer.
_PATIENCE_S = 120.0


class Engine(Protocol):
    """What a prompt needs of the engine's client."""

    metrics: RerankMetrics
    inbox: Inbox

    @property
    def errored(self) -> bool:
        """Whether the engine has died."""

    @property
    def dead_error(self) -> BaseException:
        """What to raise then."""

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer."""

    def keep_until_done(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for."""


class Row(NamedTuple):
    """What scores each token of a candidate: a probe or a head, as the worker calls it."""

    probe: int
    pooling: Pooling
    window: int | None


class ScoreClient:
    """The worker's part of one prompt.

    Args:
        engine: The client of vLLM's engine.
        candidates: All of the prompt.
        rows: First those that score whole completions, then the heads.
        num_whole: How many rows score whole completions.
    """

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[CandidateRun],
        rows: Sequence[Row],
        num_whole: int,
    ) -> None:
        self._engine = engine
        self._candidates = candidates
        self._rows = rows
        self._num_whole = num_whole
        self._scores = {each.key: engine.inbox.expect(each.key) for each in candidates}

    def ask(self, candidate: CandidateRun) -> list[Any]:
        """Return what the request of a candidate tells the worker, as ``ScoringMixin`` reads it."""
        rows = [row.probe for row in self._rows]
        return [self._engine.inbox.address, candidate.key, rows, self._num_whole]

    async def peek(
        self, some: Sequence[CandidateRun], lengths: list[int], rows: list[int]
    ) -> list[list[float]]:
        """Return what some candidates score at a checkpoint, by the heads in these rows.

        Args:
            some: Candidates that have reached it, or have ended.
            lengths: How many leading tokens of each count.
            rows: The heads.

        Raises:
            ScoringError: The worker does not tell.
            EngineDeadError: The engine died meanwhile.
        """
        found = []
        for candidate, length in zip(some, lengths, strict=True):
            scores = self._scores[candidate.key]
            await self._wait(
                candidate,
                scores,
                lambda now: now.tokens is not None or all(row in now.heads for row in rows),
            )
            found.append(
                [
                    scores.heads[row] if row in scores.heads else self._pool(scores, row, length)
                    for row in rows
                ]
            )
        return found

    async def take(self, lengths: list[int], *, with_tokens: bool) -> list[Taken]:
        """Return the scores of all candidates, each of which has ended or was dropped.

        Args:
            lengths: How many leading tokens of each completion make its embedding.
            with_tokens: Whether the scores of those tokens are wanted too.

        Returns:
            For each candidate one score by each probe, NaN if a token's state was never computed;
            if wanted the scores of its tokens by each probe, else nothing; and how many tokens the
            engine has generated of it.

        Raises:
            ScoringError: The worker does not tell.
            EngineDeadError: The engine died meanwhile.
        """
        taken: list[Taken] = []
        for candidate, length in zip(self._candidates, lengths, strict=True):
            scores = self._scores[candidate.key]
            await self._wait(candidate, scores, lambda now: now.tokens is not None)
            whole = range(self._num_whole)
            pooled = [self._pool(scores, row, length) for row in whole]
            tokens = scores.tokens or []
            shown = [_cut(tokens[row], length)[1:].tolist() for row in whole] if with_tokens else []
            taken.append((pooled, shown, max((each.size for each in tokens), default=0)))
        self.drop()
        return taken

    def drop(self) -> None:
        """Await nothing any more."""
        for candidate in self._candidates:
            self._engine.inbox.forget(candidate.key)

    def _pool(self, scores: Scores, row: int, length: int) -> float:
        _, pooling, window = self._rows[row]
        assert scores.tokens is not None
        return pool(_cut(scores.tokens[row], length), pooling=pooling, window=window)

    async def _wait(
        self, candidate: CandidateRun, scores: Scores, is_enough: Callable[[Scores], bool]
    ) -> None:
        ended_s: float | None = None
        while not is_enough(scores):
            if ended_s is None and candidate.has_ended:  # until then the engine may make it wait
                ended_s = time.monotonic()
            scores.changed.clear()
            try:
                await asyncio.wait_for(scores.changed.wait(), _CHECK_ENGINE_S)
            except TimeoutError:
                self._engine.inbox.check()
                if self._engine.errored:
                    raise self._engine.dead_error from None
                if ended_s is not None and time.monotonic() - ended_s > _PATIENCE_S:
                    raise self._unknown(candidate) from None

    def _unknown(self, candidate: CandidateRun) -> ScoringError:
        index = self._candidates.index(candidate)
        return ScoringError(
            f"the engine sent no score of candidate {index} of {len(self._candidates)} within "
            f"{_PATIENCE_S:.0f} s of its end"
        )


def _cut(row: Floats, length: int) -> Floats:
    """Return the scores at offsets 0 to length, NaN where there is none."""
    cut = np.full(length + 1, np.nan, np.float32)
    cut[: row.size] = row[: length + 1]
    return cut
