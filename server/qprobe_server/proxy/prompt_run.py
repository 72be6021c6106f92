"""One prompt of a reranked request behind a proxy: sampled, read, chosen."""

import asyncio
import logging
import time
from collections.abc import Sequence

from qprobe.rewards.equal import Classes
from qprobe_server.choice.draw import check_finite, choose, combine, settle_beta
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.result import make_result
from qprobe_server.choice.schemas import CandidateReply, ResultReply
from qprobe_server.edge.metrics import Outcome, RerankMetrics
from qprobe_server.errors import ReadingError, UpstreamError
from qprobe_server.proxy.answers import Candidate
from qprobe_server.proxy.chat_text import write_answer
from qprobe_server.proxy.reader import Prompt, Read, Reader
from qprobe_server.proxy.sampling import Asked, Sample, sample
from qprobe_server.proxy.usage import add_usages, count_of

__all__ = ["PromptRun"]

_logger = logging.getLogger(__name__)


class PromptRun:
    """Samples the candidates of a prompt, has them read, and chooses.

    Args:
        rerank: Of the HTTP request; gets the result.
        prompt: What is gone on with.
        reader: Has let the prompt pass.
        metrics: Of the server.
        n: Answers that are wanted, from 1 to k.
        seed: Of the request, or None.
    """

    def __init__(
        self,
        rerank: Rerank,
        prompt: Prompt,
        reader: Reader,
        metrics: RerankMetrics,
        *,
        n: int,
        seed: int | None,
    ) -> None:
        self._rerank = rerank
        self._index = rerank.next_prompt()
        self._prompt = prompt
        self._reader = reader
        self._metrics = metrics
        self._n = n
        self._seed = seed
        self._vote_s = 0.0  # what a vote took, which may be to run code
        self._probes = [probe for probe, _ in rerank.request.probes]
        self._weights = [weight for _, weight in rerank.request.probes]

    async def run(self, asked: Asked, *, deadline_s: float) -> list[Candidate]:
        """Return the candidates chosen, in their order.

        Args:
            asked: Of the request.
            deadline_s: On the event loop's clock, for the candidates.

        Raises:
            UpstreamError: Fewer candidates came than answers are wanted.
            ReadingError: What came cannot be read.
            ScoringError: A score is not finite.
        """
        outcome: Outcome = "error"
        label = self._metrics.label([probe.name for probe in self._probes])
        try:
            came = await sample(asked, self._index, k=self._rerank.k, deadline_s=deadline_s)
            ended_s = time.monotonic()
            if came.failures:
                origin = asked.upstream.address.origin
                _logger.warning("%s: %s", origin, came.describe_failures())
            chosen = await self._choose(came, label)
            self._metrics.observe_overhead(time.monotonic() - ended_s - self._vote_s)
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.count_prompt(label, outcome)
        return chosen

    async def _choose(self, came: Sample, label: str) -> list[Candidate]:
        """Have the candidates read, draw among those that could be, and note the result."""
        readings = await self._reader.read(
            self._prompt,
            [each.written for each in came.candidates],
            self._probes,
            with_tokens=self._wants_tokens,
        )
        both = [
            (candidate, read)
            for candidate, read in zip(came.candidates, readings, strict=True)
            if read is not None
        ]
        candidates, reads = [each for each, _ in both], [read for _, read in both]
        self._check_number(came, candidates)
        scores = combine([each.scores for each in reads], self._weights)
        self._metrics.count_non_finite(label, scores)
        check_finite(scores)
        beta = settle_beta(self._rerank.request, scores)
        classes = await self._vote(candidates)
        draw = choose(
            scores,
            None if classes is None else classes.of,
            beta=beta,
            n=self._n,
            seed=self._seed,
            prompt_index=self._index,
        )
        num_tokens = [each.written.num_tokens for each in candidates]
        result = make_result(
            num_tokens=[each or 0 for each in num_tokens],  # only their sum is told; see below
            scores=scores,
            places=range(len(candidates)),
            draw=draw,
            classes=classes,
            confidence=self._read_confidence(reads),
            beta=beta,
            shown=self._show(candidates, reads),
            rejected_at=[None] * len(candidates),
            checkpoint_scores=None,
        )
        self._add_sampled(result, came)
        await self._note(result)
        self._tell(came, num_unread=len(came.candidates) - len(candidates))
        self._metrics.observe(label, result, num_tokens)
        return [candidates[index] for index in result.selected]

    async def _vote(self, candidates: Sequence[Candidate]) -> Classes | None:
        """Return the candidates by their answers, if they vote."""
        begun_s = time.monotonic()
        classes = await self._rerank.group([write_answer(each.written) for each in candidates])
        vote = self._rerank.request.vote
        if vote is not None and classes is not None:
            self._vote_s = time.monotonic() - begun_s
            self._metrics.votes.observe(vote.by, classes, self._vote_s)
        return classes

    def _read_confidence(self, reads: Sequence[Read]) -> list[float] | None:
        """Return the reward to be expected of candidates, if the request's probe tells it."""
        confidence = self._rerank.request.confidence
        if confidence is None:
            return None
        scores = [each.scores[0] if confidence.own is None else each.own_score for each in reads]
        known = [each for each in scores if each is not None]
        if len(known) < len(scores):
            self._rerank.tell("this server's reader does not tell the probe's confidence")
            return None
        check_finite(known)
        return confidence.expect(known)

    @property
    def _wants_tokens(self) -> bool:
        return self._rerank.request.return_token_scores and self._reader.gives_token_scores

    def _check_number(self, came: Sample, candidates: Sequence[Candidate]) -> None:
        if not candidates:
            raise ReadingError("none of the candidates can be read: the reader does not take them")
        if len(candidates) < self._n:
            said = came.describe_failures() or "some cannot be read"
            raise UpstreamError(f"n: {self._n} answers are wanted, but {said}")

    def _show(
        self, candidates: Sequence[Candidate], reads: Sequence[Read]
    ) -> list[CandidateReply] | None:
        """Return the candidates if the reply shows them."""
        if not self._rerank.request.return_candidates:
            return None
        shown = []
        for candidate, read in zip(candidates, reads, strict=True):
            written = candidate.written
            each = CandidateReply(
                text=write_answer(written),
                num_tokens=written.num_tokens,
                finish_reason=written.finish_reason,
                stop_reason=None,
            )
            if self._wants_tokens:
                each.tokens = list(read.tokens)
                each.token_scores = combine(read.token_scores, self._weights)
            shown.append(each)
        return shown

    def _add_sampled(self, result: ResultReply, came: Sample) -> None:
        """Say what is paid for: also for candidates that could not be read."""
        usage = add_usages(came.usages)
        result.sampled_usage = usage
        # The other name is Anthropic's.
        result.sampled_tokens = count_of(usage, "completion_tokens", "output_tokens")

    async def _note(self, result: ResultReply) -> None:
        if result.candidates is None:
            self._rerank.add(self._index, result)
        else:
            await asyncio.to_thread(self._rerank.add, self._index, result)

    def _tell(self, came: Sample, *, num_unread: int) -> None:
        """Have the reply say what the client may not expect."""
        missing = came.describe_failures()
        if missing is not None:
            self._rerank.tell(missing)
        if num_unread:
            self._rerank.tell(
                f"{num_unread} candidates are left out: the reader does not take them"
            )
        if self._rerank.request.return_token_scores and not self._reader.gives_token_scores:
            self._rerank.tell("this server's reader gives no scores of single tokens")
