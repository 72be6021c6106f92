"""The scores of a prompt's candidates, as the worker sends them; ``ScoringMixin`` is its side."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import ScoringError
from qprobe_server.library.sums import ServedSum
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.mail import Floats, Inbox, Scores

__all__ = ["Engine", "ScoreClient", "Taken", "fill_shared"]

Numbers = Mapping[str, float]

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


class Taken(NamedTuple):
    """What is known of a candidate that has ended.

    Attributes:
        scores: One by each sum; NaN if the state of a token was never computed.
        tokens: If wanted, by each sum the parts of the tokens that count.
        num_positions: How many tokens the engine has generated of it, as far as rows tell.
    """

    scores: list[float]
    tokens: list[list[float]]
    num_positions: int


class _Placed(NamedTuple):
    """A sum, and where its rows stand among the candidate's."""

    sum: ServedSum
    rows: range


class ScoreClient:
    """The worker's part of one prompt.

    Args:
        engine: The client of vLLM's engine.
        candidates: All of the prompt; their tapes keep log-probabilities if a sum reads them.
        whole: What whole completions are scored by.
        heads: By checkpoint what is scored there.
    """

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[CandidateRun],
        whole: Sequence[ServedSum],
        heads: Mapping[int, Sequence[ServedSum]],
    ) -> None:
        self._engine = engine
        self._candidates = candidates
        self._rows: list[int] = []  # as the worker calls them
        self._ends: list[int] = []  # 0 of those of whole completions
        self._whole = [self._place(each, 0) for each in whole]
        self._heads = {
            tokens: [self._place(each, tokens) for each in some] for tokens, some in heads.items()
        }
        for each in candidates:
            each.tape.sums_logprobs = any(
                some.reads_logprobs for some in chain(whole, *heads.values())
            )
        self._scores = {each.key: engine.inbox.expect(each.key) for each in candidates}

    def _place(self, each: ServedSum, end: int) -> _Placed:
        first = len(self._rows)
        self._rows += each.rows
        self._ends += [end] * len(each.rows)
        return _Placed(each, range(first, len(self._rows)))

    def ask(self, candidate: CandidateRun) -> list[Any] | None:
        """Return what the request of a candidate tells the worker, as ``ScoringMixin`` reads it.

        None if there is nothing for it to score.
        """
        if not self._rows:
            return None
        return [self._engine.inbox.address, candidate.key, self._rows, self._ends]

    async def peek(
        self,
        some: Sequence[CandidateRun],
        tokens: int,
        *,
        lengths: Sequence[int],
        numbers: Sequence[Numbers],
    ) -> list[list[float]]:
        """Return what some candidates score at a checkpoint, by each of its sums.

        Args:
            some: Candidates that have reached it, or have ended.
            tokens: The checkpoint.
            lengths: How many leading tokens of each count.
            numbers: Of each, there.

        Raises:
            ScoringError: The worker does not tell.
            EngineDeadError: The engine died meanwhile.
        """
        wanted = [row for each in self._heads[tokens] for row in each.rows]
        turns = Turns()
        found = []
        for candidate, length, told in zip(some, lengths, numbers, strict=True):
            scores = self._scores[candidate.key]
            await self._wait(
                candidate,
                scores,
                lambda now: now.tokens is not None or all(row in now.heads for row in wanted),
            )
            found.append(
                [
                    each.add_up(_cut(scores, rows, length), told)
                    for each, rows in self._heads[tokens]
                ]
            )
            await turns.give_way()
        return found

    async def take(
        self, lengths: Sequence[int], *, numbers: Sequence[Numbers], with_tokens: bool
    ) -> list[Taken]:
        """Return the scores of all candidates, each of which has ended or was dropped.

        Args:
            lengths: How many leading tokens of each completion make its embedding.
            numbers: Of each, as ``read_numbers`` of ``qprobe.probe.pooling`` gives them.
            with_tokens: Whether the parts of those tokens are wanted too.

        Raises:
            ScoringError: The worker does not tell.
            EngineDeadError: The engine died meanwhile.
        """
        turns = Turns()
        taken = []
        for candidate, length, told in zip(self._candidates, lengths, numbers, strict=True):
            scores = self._scores[candidate.key]
            await self._wait(candidate, scores, self._has_all)
            cut = [(each, _cut(scores, rows, length)) for each, rows in self._whole]
            taken.append(
                Taken(
                    [each.add_up(rows, told) for each, rows in cut],
                    [each.add_up_tokens(rows, length).tolist() for each, rows in cut]
                    if with_tokens
                    else [],
                    max((row.size for row in scores.tokens or ()), default=0),
                )
            )
            await turns.give_way()
        self.drop()
        return taken

    def _has_all(self, scores: Scores) -> bool:
        return scores.tokens is not None or not self._rows

    async def share(self, completions: Sequence[Sequence[int]]) -> None:
        """Give candidates that have ended the scores of others that begin alike.

        Args:
            completions: The tokens of each; what the engine's cache held of one it did not score.

        Raises:
            ScoringError: The worker does not tell.
            EngineDeadError: The engine died meanwhile.
        """
        rows = []
        for candidate in self._candidates:
            scores = self._scores[candidate.key]
            await self._wait(candidate, scores, self._has_all)
            rows.append(scores.tokens or [])
        filled = fill_shared(completions, rows)
        for candidate, tokens in zip(self._candidates, filled, strict=True):
            self._scores[candidate.key].tokens = tokens

    def drop(self) -> None:
        """Await nothing any more."""
        for candidate in self._candidates:
            self._engine.inbox.forget(candidate.key)

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


def fill_shared(
    completions: Sequence[Sequence[int]], rows: Sequence[Sequence[Floats]]
) -> list[list[Floats]]:
    """Return scores of tokens, each that is not known taken from a completion that begins alike.

    Args:
        completions: Of one prompt, their tokens.
        rows: Of each, by probe the scores at the offsets 0 to its length, NaN where not known.
    """
    tokens = [np.array(each, np.int64) for each in completions]
    filled = [[row.copy() for row in each] for each in rows]
    for mine, ours in zip(tokens, filled, strict=True):
        for other, theirs in zip(tokens, rows, strict=True):
            if not any(np.isnan(row).any() for row in ours):
                break
            length = min(mine.size, other.size)
            alike = np.cumprod(mine[:length] == other[:length]).sum() + 1  # offsets
            for row, known in zip(ours, theirs, strict=True):
                row[:alike] = np.where(np.isnan(row[:alike]), known[:alike], row[:alike])
    return filled


def _cut(scores: Scores, rows: Sequence[int], length: int) -> list[Floats]:
    """Return the scores by some rows at offsets 0 to length, NaN where there is none."""
    made = []
    for row in rows:
        known = scores.heads.get(row)
        if known is None:
            assert scores.tokens is not None
            known = scores.tokens[row]
        cut = np.full(length + 1, np.nan, np.float32)
        cut[: known.size] = known[: length + 1]
        made.append(cut)
    return made
