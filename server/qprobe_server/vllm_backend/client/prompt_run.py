"""One prompt of a reranked request: its candidates from their first token to the choice."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from qprobe.probe.schedule import Step, find_losers
from qprobe.rewards.equal import Classes
from qprobe_server.choice.candidates import Candidate, count_scored_tokens
from qprobe_server.choice.draw import check_finite, choose, combine, settle_beta
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.result import make_result
from qprobe_server.choice.schedule import list_steps
from qprobe_server.choice.schemas import ResultReply
from qprobe_server.edge.turns import Turns
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun, Requests
from qprobe_server.vllm_backend.client.score_client import Engine, ScoreClient, Taken
from qprobe_server.vllm_backend.client.showing import show

__all__ = ["PromptRun"]


class PromptRun:
    """Samples the candidates of a prompt, drops those that fall behind, and chooses.

    Args:
        engine: The client of vLLM's engine.
        rerank: Of the HTTP request; gets the result.
        prompt_index: Of the prompt in it.
        params: Of the answer that is wanted.
        rank: Data-parallel rank that all candidates run on, or None if there is but one.

    Attributes:
        rerank, prompt_index, params, rank: As given.

    Raises:
        VLLMValidationError: More answers are asked for than there are candidates.
    """

    def __init__(
        self,
        engine: Engine,
        rerank: Rerank,
        prompt_index: int,
        params: SamplingParams,
        rank: int | None,
    ) -> None:
        if params.temperature == 0:
            rerank.keep_greedy()
        if params.n > rerank.k:
            raise VLLMValidationError(
                f"n: {params.n} answers cannot be drawn from k={rerank.k} candidates",
                parameter="n",
                value=params.n,
            )
        self._engine = engine
        self.rerank = rerank
        self.prompt_index = prompt_index
        self.params = params
        self.rank = rank
        self._probes = [probe for probe, _ in rerank.request.probes]
        self._weights = [weight for _, weight in rerank.request.probes]
        self._steps = list_steps(rerank.request.schedule, k=rerank.k, n=params.n)
        self._confidence = rerank.request.confidence
        own = self._confidence and self._confidence.own
        whole = [*(each.score for each in self._probes), *([own] if own else [])]
        heads = {
            step.tokens: [each.heads[step.tokens] for each in self._probes] for step in self._steps
        }
        self._vote_s = 0.0  # what a vote took, which may be to run code
        self._changed = asyncio.Event()  # a candidate has ended, or has what a checkpoint waits for
        self._candidates = [
            CandidateRun(uuid.uuid4().hex, params.num_logprobs, self._changed.set)
            for _ in range(rerank.k)
        ]
        self._scores = ScoreClient(engine, self._candidates, whole, heads)

    @property
    def num_candidates(self) -> int:
        """How many are sampled."""
        return len(self._candidates)

    async def run(self, requests: Requests) -> list[CandidateRun]:
        """Return the candidates chosen.

        Args:
            requests: Theirs in the engine, not begun.
        """
        taken = False
        try:
            requests.begin(self._candidates, self._scores.ask)
            left = await self._thin_out(requests)
            await self._until(lambda: self._have_ended(left))
            ended_s = time.monotonic()
            chosen = self._find_cut_short()
            if chosen is None:
                chosen = await self._choose(left)
                self._engine.metrics.observe_overhead(time.monotonic() - ended_s - self._vote_s)
                taken = True
        finally:
            if not taken:
                self._discard(requests)
        return [self._candidates[index] for index in chosen]

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, as far as candidates make it so.

        Raises:
            Exception: The engine has failed.
        """
        while True:
            self._changed.clear()
            for candidate in self._candidates:
                if candidate.failure is not None:
                    raise candidate.failure
            if is_so():
                return
            await self._changed.wait()

    def _have_ended(self, left: Sequence[CandidateRun]) -> bool:
        """Whether all have ended, or n of them once the engine gave up on one."""
        return all(each.has_ended for each in left) or self._find_cut_short() is not None

    async def _thin_out(self, requests: Requests) -> list[CandidateRun]:
        """Follow the schedule; return the candidates that are left at its end.

        Who leaves depends on scores up to the checkpoint's token only, however far the faster
        candidates are by then, so that the load of the engine does not enter.
        """
        left = self._candidates
        for step in self._steps:
            await self._until_read(left, step.tokens)
            if any(each.was_cut_short for each in left):
                break  # the request ends with what the engine gave up on
            scores = await self._peek(left, step)
            losers = [left[index] for index in find_losers(scores, step.keep)]
            for each in losers:
                each.rejected_at = step.tokens
            await requests.abort(losers)
            left = [each for each in left if each.rejected_at is None]
        return left

    async def _until_read(self, left: Sequence[CandidateRun], tokens: int) -> None:
        """Wait until the model has read so many tokens of all, or the engine gave up on one."""
        for each in left:
            each.tape.awaited = tokens + 1
        await self._until(
            lambda: (
                all(each.has_read(tokens) for each in left)
                or any(each.was_cut_short for each in left)
            )
        )

    async def _peek(self, candidates: Sequence[CandidateRun], step: Step) -> list[float]:
        """Return the candidates' scores at a checkpoint."""
        turns = Turns()
        lengths = []
        for candidate in candidates:
            lengths.append(self._count_compared(candidate, step.tokens))
            await turns.give_way()
        numbers = [each.read_numbers(step.tokens) for each in candidates]
        found = await self._scores.peek(candidates, step.tokens, lengths=lengths, numbers=numbers)
        scores = combine(found, self._weights)
        self._engine.metrics.count_non_finite(self.label, scores)
        check_finite(scores)
        for candidate, score in zip(candidates, scores, strict=True):
            candidate.checkpoint_scores[step.tokens] = score
        return scores

    def _count_compared(self, candidate: CandidateRun, tokens: int) -> int:
        """Count the tokens that a checkpoint looks at: by what the candidate is, not by when."""
        if candidate.tape.num_tokens > tokens:
            return tokens
        return count_scored_tokens(candidate.read(), self._decode)

    async def _choose(self, left: Sequence[CandidateRun]) -> list[int]:
        """Take the candidates' scores, draw among those that are left, and note the result."""
        request, params = self.rerank.request, self.params
        candidates = [each.read() for each in self._candidates]
        lengths = await self._count_scored(candidates)
        taken = await self._scores.take(
            lengths,
            numbers=[each.read_numbers() for each in self._candidates],
            with_tokens=request.return_token_scores,
        )
        places = [self._candidates.index(each) for each in left]
        num_probes = len(self._probes)
        scores = combine([taken[place].scores[:num_probes] for place in places], self._weights)
        self._engine.metrics.count_non_finite(self.label, scores)
        check_finite(scores)
        beta = settle_beta(request, scores)
        classes = await self._vote([candidates[place].text for place in places])
        draw = choose(
            scores,
            None if classes is None else classes.of,
            beta=beta,
            n=params.n,
            seed=params.seed,
            prompt_index=self.prompt_index,
        )
        # The engine may have gone on with a dropped candidate when nobody listened any more.
        num_tokens = [
            max(len(each.token_ids), known.num_positions if each.finish_reason is None else 0)
            for each, known in zip(candidates, taken, strict=True)
        ]
        result = make_result(
            num_tokens=num_tokens,
            scores=scores,
            places=places,
            draw=draw,
            classes=classes,
            confidence=self._read_confidence([taken[place] for place in places]),
            beta=beta,
            shown=await show(
                request, candidates, num_tokens, [each.tokens for each in taken], self._decode
            ),
            rejected_at=[each.rejected_at for each in self._candidates],
            checkpoint_scores=[each.checkpoint_scores for each in self._candidates]
            if request.schedule
            else None,
        )
        await self._note(result, num_tokens)
        return result.selected

    async def _vote(self, completions: Sequence[str]) -> Classes | None:
        """Return candidates by their answers, if they vote."""
        begun_s = time.monotonic()
        classes = await self.rerank.group(completions)
        vote = self.rerank.request.vote
        if vote is not None and classes is not None:
            self._vote_s = time.monotonic() - begun_s
            self._engine.metrics.votes.observe(vote.by, classes, self._vote_s)
        return classes

    def _read_confidence(self, taken: Sequence[Taken]) -> list[float] | None:
        """Return the reward to be expected of candidates, if the request's probe tells it."""
        if self._confidence is None:
            return None
        scores = [each.scores[-1] for each in taken]  # by its own terms, if it has any
        check_finite(scores)
        return self._confidence.expect(scores)

    async def _note(self, result: ResultReply, num_tokens: Sequence[int]) -> None:
        if result.candidates is None:
            self.rerank.add(self.prompt_index, result)
        else:
            await asyncio.to_thread(self.rerank.add, self.prompt_index, result)
        self._engine.metrics.observe(self.label, result, num_tokens)

    async def _count_scored(self, candidates: Sequence[Candidate]) -> list[int]:
        """Count the tokens that make each candidate's embedding."""
        turns = Turns()
        lengths = []
        for run, candidate in zip(self._candidates, candidates, strict=True):
            lengths.append(
                count_scored_tokens(candidate, self._decode)
                if run.rejected_at is None
                else self._count_compared(run, run.rejected_at)
            )
            await turns.give_way()
        return lengths

    def _discard(self, requests: Requests) -> None:
        """Abort what still runs and drop its scores, whatever becomes of the caller's task.

        In a task of its own: a cancelled HTTP request cancels every further wait of its own task.
        """
        self._scores.drop()
        self._engine.keep_until_done(asyncio.create_task(requests.end()))

    def _find_cut_short(self) -> list[int] | None:
        """Return candidates that the engine gave up on, if any: they are the answer, as in vLLM."""
        ended = [
            index
            for index, each in enumerate(self._candidates)
            if each.has_ended and each.rejected_at is None
        ]
        # Those that it gave up on first.
        ended.sort(key=lambda index: not self._candidates[index].was_cut_short)
        if len(ended) < self.params.n or not self._candidates[ended[0]].was_cut_short:
            return None
        return ended[: self.params.n]

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._engine.get_tokenizer().decode(
            list(token_ids), skip_special_tokens=self.params.skip_special_tokens
        )
        return text

    @property
    def label(self) -> str:
        """What the metrics call the request's probes."""
        return self._engine.metrics.label([probe.name for probe in self._probes])
