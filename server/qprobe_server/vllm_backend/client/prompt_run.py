"""One prompt of a reranked request: its candidates from their first token to the choice.

Relies on vLLM 0.32.0: ``AsyncLLM.generate`` aborts its request when its task is cancelled
(v1/engine/async_llm.py), and ``RequestOutputKind`` (sampling_params.py).
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from qprobe.probe.schedule import Step, find_losers
from qprobe_server.choice.candidates import Candidate, count_scored_tokens
from qprobe_server.choice.draw import check_finite, choose, combine, settle_beta
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.result import make_result, show_candidates
from qprobe_server.choice.schemas import CandidateReply, ResultReply
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun, Outputs
from qprobe_server.vllm_backend.client.score_client import Engine, Reading, ScoreClient
from qprobe_server.vllm_backend.client.turns import Turns
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG

__all__ = ["PromptRun"]

_Sample = Callable[[SamplingParams, int], AsyncGenerator[RequestOutput, None]]


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
        # Steps at which somebody leaves; n answers take n candidates.
        self._steps: list[Step] = []
        num_left = rerank.k
        for step in rerank.request.schedule:
            keep = max(step.keep, params.n)
            if keep < num_left:
                self._steps.append(Step(step.tokens, keep))
                num_left = keep
        # The workers score by the probes first, then by their heads, checkpoint by checkpoint.
        self._rows = [probe.index for probe in self._probes]
        readings: list[Reading] = [(each.info.pooling, each.info.window) for each in self._probes]
        for step in self._steps:
            self._rows += [probe.heads[step.tokens] for probe in self._probes]
            readings += [("mean", step.tokens)] * len(self._probes)
        # A checkpoint has to see how far each candidate is.
        self._kind = params.output_kind
        if self._steps and self._kind is RequestOutputKind.FINAL_ONLY:
            self._kind = RequestOutputKind.CUMULATIVE
        self._candidates = [
            CandidateRun(uuid.uuid4().hex, self._kind) for _ in range(self.rerank.k)
        ]
        self._scores = ScoreClient(engine, self._candidates, readings, len(self._probes))

    @property
    def num_candidates(self) -> int:
        """How many are sampled."""
        return len(self._candidates)

    async def run(self, sample: _Sample) -> list[Outputs]:
        """Return the outputs of the candidates chosen.

        Args:
            sample: Begins vLLM's generation of a candidate, by its parameters and index.
        """
        for index, candidate in enumerate(self._candidates):
            stream = sample(self._candidate_params(index, candidate.key), index)
            candidate.task = asyncio.create_task(self._follow(candidate, stream))
        taken = False
        try:
            left = await self._thin_out()
            await self._wait_for(left)
            ended_s = time.monotonic()
            chosen = self._find_cut_short()
            if chosen is None:
                chosen = await self._choose(left)
                self._engine.metrics.observe_overhead(time.monotonic() - ended_s)
                taken = True
        finally:
            if not taken:
                self._discard()
        return [self._candidates[index].outputs for index in chosen]

    async def _follow(
        self, candidate: CandidateRun, stream: AsyncGenerator[RequestOutput, None]
    ) -> None:
        try:
            async for output in stream:
                candidate.add(output)
                if candidate.was_cut_short:
                    self._end_schedule()
        except Exception:  # not the cancellation of a candidate that was dropped
            self._end_schedule()
            raise
        finally:
            candidate.stop_waiting()

    async def _wait_for(self, left: Sequence[CandidateRun]) -> None:
        """Wait until candidates have ended: all, or n of them once the engine gave up on one."""
        running = {each.task for each in left}
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if self._find_cut_short() is not None:
                return

    def _end_schedule(self) -> None:
        for candidate in self._candidates:
            candidate.stop_waiting()

    async def _thin_out(self) -> list[CandidateRun]:
        """Follow the schedule; return the candidates that are left at its end.

        Who leaves depends on scores up to the checkpoint's token only, however far the faster
        candidates are by then, so that the load of the engine does not enter.
        """
        left = self._candidates
        for step in self._steps:
            await asyncio.gather(*(candidate.reach(step.tokens) for candidate in left))
            if any(each.was_cut_short or _has_failed(each.task) for each in left):
                break  # the request ends with what the engine gave up on, or with the error
            scores = await self._peek(left, step)
            losers = find_losers(scores, step.keep)
            for index in losers:
                left[index].rejected_at = step.tokens
                left[index].task.cancel()
            left = [each for index, each in enumerate(left) if index not in set(losers)]
        return left

    async def _peek(self, candidates: Sequence[CandidateRun], step: Step) -> list[float]:
        """Return the candidates' scores at a checkpoint."""
        turns = Turns()
        lengths = []
        for candidate in candidates:
            lengths.append(self._count_compared(candidate, step.tokens))
            await turns.give_way()
        num_probes = len(self._probes)
        first = num_probes * (1 + self._steps.index(step))
        rows = list(range(first, first + num_probes))
        scores = combine(await self._scores.peek(candidates, lengths, rows), self._weights)
        self._engine.metrics.count_non_finite(self.label, scores)
        check_finite(scores)
        for candidate, score in zip(candidates, scores, strict=True):
            candidate.checkpoint_scores[step.tokens] = score
        return scores

    def _count_compared(self, candidate: CandidateRun, tokens: int) -> int:
        """Count the tokens that a checkpoint looks at: by what the candidate is, not by when."""
        if candidate.num_tokens > tokens:
            return tokens
        return count_scored_tokens(candidate.read(), self._decode)

    async def _choose(self, left: Sequence[CandidateRun]) -> list[int]:
        """Take the candidates' scores, draw among those that are left, and note the result."""
        request, params = self.rerank.request, self.params
        await asyncio.gather(*(each.task for each in self._candidates), return_exceptions=True)
        candidates = [each.read() for each in self._candidates]
        lengths = await self._count_scored(candidates)
        taken = await self._scores.take(lengths, with_tokens=request.return_token_scores)
        places = [self._candidates.index(each) for each in left]
        scores = combine([taken[place][0][: len(self._probes)] for place in places], self._weights)
        self._engine.metrics.count_non_finite(self.label, scores)
        check_finite(scores)
        beta = settle_beta(request, scores)
        draw = choose(
            scores, beta=beta, n=params.n, seed=params.seed, prompt_index=self.prompt_index
        )
        # The engine may have gone on with a dropped candidate when nobody listened any more.
        num_tokens = [
            max(len(each.token_ids), num_positions if each.finish_reason is None else 0)
            for each, (_, _, num_positions) in zip(candidates, taken, strict=True)
        ]
        result = make_result(
            num_tokens=num_tokens,
            scores=scores,
            places=places,
            draw=draw,
            beta=beta,
            shown=await self._show(candidates, num_tokens, [each for _, each, _ in taken]),
            rejected_at=[each.rejected_at for each in self._candidates],
            checkpoint_scores=[each.checkpoint_scores for each in self._candidates]
            if request.schedule
            else None,
        )
        await self._note(result, num_tokens)
        return result.selected

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

    async def _show(
        self,
        candidates: Sequence[Candidate],
        num_tokens: Sequence[int],
        token_scores: Sequence[list[list[float]]],
    ) -> list[CandidateReply] | None:
        """Return the candidates if the reply shows them; their tokens' scores are by each probe."""
        if not self.rerank.request.return_candidates:
            return None
        texts: dict[int, str] = {}
        turns = Turns()
        for each in candidates if self.rerank.request.return_token_scores else ():
            for token in each.token_ids:
                if token not in texts:  # of many candidates' tokens most are the same
                    texts[token] = self._decode([token])
                    await turns.give_way()

        return await asyncio.to_thread(
            show_candidates,
            candidates,
            num_tokens=num_tokens,
            token_scores=[each[: len(self._probes)] for each in token_scores]
            if self.rerank.request.return_token_scores
            else None,
            weights=self._weights,
            texts=texts,
        )

    def _discard(self) -> None:
        """Abort what still runs and drop its scores, whatever becomes of the caller's task.

        In a task of its own: a cancelled HTTP request cancels every further wait of its own task.
        """
        self._scores.drop()
        tasks = [candidate.task for candidate in self._candidates]
        for task in tasks:
            task.cancel()  # vLLM's generate() aborts its request when it is cancelled

        async def finish() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        self._engine.keep_until_done(asyncio.create_task(finish()))

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

    def _candidate_params(self, index: int, key: str) -> SamplingParams:
        """Return the parameters of one candidate, seeded as vLLM seeds the children of n = k."""
        mine = copy(self.params)
        mine.n = 1
        mine.output_kind = self._kind
        if self._steps:
            mine.stream_interval = None  # each token is to be seen as it comes
        if self.params.seed is not None:
            mine.seed = self.params.seed + index
        asked = [self._scores.address, key, self._rows, len(self._probes)]
        mine.extra_args = {**(self.params.extra_args or {}), EXTRA_ARG: asked}
        return mine

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._engine.get_tokenizer().decode(
            list(token_ids), skip_special_tokens=self.params.skip_special_tokens
        )
        return text

    @property
    def label(self) -> str:
        """What the metrics call the request's probes."""
        return self._engine.metrics.label([probe.name for probe in self._probes])


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None
