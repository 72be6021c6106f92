"""Asks the workers for the scores of a prompt's candidates; ``ScoringMixin`` answers."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.errors import ScoringError
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun

__all__ = ["Engine", "ScoreClient", "Taken"]

# A candidate's scores, by probe the scores of its tokens, and how many positions were computed.
Taken = tuple[list[float], list[list[float]], int]


class Engine(Protocol):
    """What a prompt needs of the engine's client."""

    metrics: RerankMetrics

    @property
    def errored(self) -> bool:
        """Whether the engine has died."""

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer."""

    async def call_workers(self, method: str, *args: Any, rank: int | None = None) -> list[Any]:
        """Call a method of the workers of one data-parallel rank, or of all."""

    def keep_until_done(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for."""


class ScoreClient:
    """The workers' part of one prompt.

    Args:
        engine: The client of vLLM's engine.
        candidates: All of the prompt.
        rank: Data-parallel rank that they run on, or None if there is but one.
    """

    def __init__(
        self, engine: Engine, candidates: Sequence[CandidateRun], rank: int | None
    ) -> None:
        self._engine = engine
        self._candidates = candidates
        self._rank = rank

    async def peek(
        self, some: Sequence[CandidateRun], lengths: list[int], rows: list[int]
    ) -> list[list[float]]:
        """Return what some candidates score by now, by these of the rows that score them.

        Raises:
            ScoringError: The workers do not know one of them.
        """
        answers = await self._call("qprobe_peek", some, lengths, rows)
        found = _merge_answers(answers)
        for candidate, each in zip(some, found, strict=True):
            if each is None:
                raise self._unknown(candidate)
        return found

    async def take(self, lengths: list[int], *, with_tokens: bool) -> list[Taken]:
        """Remove all candidates from the workers, and return their scores.

        Raises:
            ScoringError: The workers do not know a candidate that is left.
        """
        details = "tokens" if with_tokens else "pooled"
        answers = await self._call("qprobe_take", self._candidates, lengths, details)
        taken: list[Taken] = []
        for candidate, each in zip(self._candidates, _merge_answers(answers), strict=True):
            if each is None and candidate.rejected_at is None:
                raise self._unknown(candidate)
            # The workers may have forgotten a dropped one; nothing hangs on it.
            taken.append(([], [], 0) if each is None else each)
        return taken

    async def drop(self) -> None:
        """Have the workers forget all candidates, if they live."""
        if not self._engine.errored:
            await self._call("qprobe_drop", self._candidates)

    async def _call(self, method: str, some: Sequence[CandidateRun], *args: Any) -> list[Any]:
        keys = [each.key for each in some]
        return await self._engine.call_workers(method, keys, *args, rank=self._rank)

    def _unknown(self, candidate: CandidateRun) -> ScoringError:
        index = self._candidates.index(candidate)
        return ScoringError(
            f"the engine holds no score of candidate {index} of {len(self._candidates)}"
        )


def _merge_answers(answers: list[Any]) -> list[Any]:
    """Return one answer a candidate, of the worker that scores it; None where none knows it."""
    return [
        next((each for each in found if each is not None), None)
        for found in zip(*(each for each in answers if each), strict=True)
    ]
