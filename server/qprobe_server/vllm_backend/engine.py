"""vLLM's engine client with one difference: ``generate`` answers with the best of k by a probe.

Relies on vLLM 0.32.0: ``AsyncLLM.generate/check_admission/abort`` (v1/engine/async_llm.py),
``AsyncMPClient._call_utility_async, core_engines`` and, with data parallelism,
``DPLBAsyncMPClient.engine_inflight`` (v1/engine/core_client.py).
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from copy import copy
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from qprobe import Probe
from qprobe_server.candidates import Candidate, choose, count_scored_tokens, make_result
from qprobe_server.errors import ScoringError
from qprobe_server.rerank import Rerank, current_rerank
from qprobe_server.vllm_backend.scoring import EXTRA_ARG

__all__ = ["RerankingLLM"]

# vLLM samples greedily below this temperature (sampling_params._SAMPLING_EPS).
_GREEDY_BELOW = 1e-5
# How often a wait for the workers looks whether the engine still lives.
_CHECK_ENGINE_S = 1.0

_Outputs = list[RequestOutput]


class RerankingLLM(AsyncLLM):
    """Reranks the requests around which ``current_rerank`` is set; others are vLLM's own.

    vLLM awaits ``generate`` in the task of the HTTP request, so the variable reaches it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cleanups: set[asyncio.Task[None]] = set()
        self._candidates_on_rank: Counter[int] = Counter()

    async def load_probes(self, probes: Sequence[Probe]) -> None:
        """Give the workers the probes; requests name them by their index."""
        rows = []
        for probe in probes:
            weight, bias = probe.layers[0]
            data = weight[0].numpy().tobytes() + bias.numpy().tobytes()
            rows.append((probe.info.layer, probe.info.pooling, probe.info.window, data))
        await self._call_workers("qprobe_load", rows)

    async def num_held_candidates(self) -> int:
        """Return how many candidates the workers hold scores of."""
        counts = await self._call_workers("qprobe_num_candidates")
        return sum(count for count in counts if count is not None)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Count the k candidates of a request instead of its n answers, before it begins.

        Later calls, with a request id, are vLLM's own for each candidate.
        """
        rerank = current_rerank.get()
        if rerank is not None and request_id is None:
            n = rerank.k
        super().check_admission(n, request_id)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Sample as vLLM does, or rerank.

        Raises:
            VLLMValidationError: The request sets the workers' own argument.
        """
        if sampling_params.extra_args and EXTRA_ARG in sampling_params.extra_args:
            raise VLLMValidationError(
                f"vllm_xargs.{EXTRA_ARG} is reserved; use the q_probe object",
                parameter=f"vllm_xargs.{EXTRA_ARG}",
            )
        rerank = current_rerank.get()
        if rerank is None:
            return super().generate(prompt, sampling_params, request_id, **kwargs)
        return self._generate_reranked(
            rerank, rerank.next_prompt(), prompt, sampling_params, request_id, kwargs
        )

    async def _generate_reranked(
        self,
        rerank: Rerank,
        prompt_index: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        if params.temperature < _GREEDY_BELOW and rerank.k > 1:
            rerank.k = 1
            rerank.notice = "temperature 0 leaves one candidate: the greedy one"
        if params.n > rerank.k:
            raise VLLMValidationError(
                f"n: {params.n} answers cannot be drawn from k={rerank.k} candidates",
                parameter="n",
                value=params.n,
            )
        keys = [uuid.uuid4().hex for _ in range(rerank.k)]
        rank = self._pick_rank(kwargs.get("data_parallel_rank"))
        kwargs = {**kwargs, "data_parallel_rank": rank}
        if rank is not None:
            self._candidates_on_rank[rank] += rerank.k
        tasks = [
            asyncio.create_task(
                self._sample(
                    prompt,
                    _candidate_params(params, index, key, rerank.probe.index),
                    f"{request_id}-{index}",
                    kwargs,
                )
            )
            for index, key in enumerate(keys)
        ]
        try:
            outputs = await asyncio.gather(*tasks)
            candidates = [_to_candidate(each, params.output_kind) for each in outputs]
            chosen = _find_cut_short(candidates, params.n)
            if chosen is None:
                scores = await self._take_scores(keys, candidates, params, rank)
                draw = choose(
                    scores,
                    beta=rerank.beta,
                    n=params.n,
                    seed=params.seed,
                    prompt_index=prompt_index,
                )
                chosen = draw.selected
                rerank.results[prompt_index] = make_result(
                    candidates, scores, draw, return_candidates=rerank.return_candidates
                )
                keys = []
        finally:
            if rank is not None:
                self._candidates_on_rank[rank] -= rerank.k
            if keys:
                self._discard(tasks, keys, rank)
        winners = [outputs[index] for index in chosen]
        for output in _merge(winners, request_id, params.output_kind):
            yield output

    async def _sample(
        self, prompt: Any, params: SamplingParams, request_id: str, kwargs: dict[str, Any]
    ) -> _Outputs:
        stream = super().generate(prompt, params, request_id, **kwargs)
        return [output async for output in stream]

    async def _take_scores(
        self,
        keys: list[str],
        candidates: list[Candidate],
        params: SamplingParams,
        rank: int | None,
    ) -> list[float]:
        def decode(token_ids: Sequence[int]) -> str:
            return self.get_tokenizer().decode(
                list(token_ids), skip_special_tokens=params.skip_special_tokens
            )

        lengths = [count_scored_tokens(each, decode) for each in candidates]
        answers = await self._call_workers("qprobe_take", keys, lengths, rank=rank)
        scores = []
        for index, found in enumerate(zip(*(each for each in answers if each), strict=True)):
            score = next((each for each in found if each is not None), None)
            if score is None:
                raise ScoringError(f"the engine holds no score of candidate {index} of {len(keys)}")
            scores.append(float(score))
        return scores

    def _discard(
        self, tasks: list[asyncio.Task[_Outputs]], keys: list[str], rank: int | None
    ) -> None:
        """Abort what still runs and drop its scores, whatever becomes of the caller's task.

        In a task of its own: a cancelled HTTP request cancels every further wait of its own task.
        """
        for task in tasks:
            task.cancel()  # vLLM's generate() aborts its request when it is cancelled

        async def finish() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self.errored:
                await self._call_workers("qprobe_drop", keys, rank=rank)

        cleanup = asyncio.create_task(finish())
        self._cleanups.add(cleanup)
        cleanup.add_done_callback(self._cleanups.discard)

    async def _call_workers(self, method: str, *args: Any, rank: int | None = None) -> list[Any]:
        """Call a method of every worker of one data-parallel rank, or of all; return all answers.

        Raises:
            EngineDeadError: The engine died meanwhile; vLLM leaves such a call unanswered.
        """
        core = self.engine_core
        engines = core.core_engines
        if rank is not None and len(engines) > 1:
            engines = [engines[rank]]
        call = asyncio.gather(
            *(
                core._call_utility_async("collective_rpc", method, None, args, None, engine=engine)
                for engine in engines
            )
        )
        while not call.done():
            await asyncio.wait({call}, timeout=_CHECK_ENGINE_S)
            if not call.done() and self.errored:
                call.cancel()
                raise self.dead_error
        return [answer for engine in call.result() for answer in engine]

    def _pick_rank(self, asked: int | None) -> int | None:
        """Return the data-parallel rank for all candidates of a prompt, so they share its cache.

        The least loaded, by vLLM's count of requests in flight and ours of candidates, which counts
        from the moment of the choice.
        """
        engines = self.engine_core.core_engines
        if asked is not None or len(engines) == 1:
            return asked
        inflight = self.engine_core.engine_inflight
        return min(
            range(len(engines)),
            key=lambda rank: inflight[engines[rank]] + self._candidates_on_rank[rank],
        )


def _candidate_params(
    params: SamplingParams, index: int, key: str, probe_index: int
) -> SamplingParams:
    """Return the parameters of one candidate, seeded as vLLM seeds the children of n = k."""
    mine = copy(params)
    mine.n = 1
    if params.seed is not None:
        mine.seed = params.seed + index
    mine.extra_args = {**(params.extra_args or {}), EXTRA_ARG: [key, probe_index]}
    return mine


def _to_candidate(outputs: _Outputs, kind: RequestOutputKind) -> Candidate:
    whole = outputs if kind is RequestOutputKind.DELTA else outputs[-1:]
    parts = [output.outputs[0] for output in whole]
    return Candidate(
        text="".join(part.text for part in parts),
        token_ids=[token for part in parts for token in part.token_ids],
        finish_reason=parts[-1].finish_reason,
        stop_reason=parts[-1].stop_reason,
    )


def _find_cut_short(candidates: list[Candidate], n: int) -> list[int] | None:
    """Return candidates that the engine gave up on, if any: they are the answer, as in vLLM."""
    cut = [i for i, each in enumerate(candidates) if each.finish_reason in ("abort", "error")]
    return [*cut, *(i for i in range(len(candidates)) if i not in cut)][:n] if cut else None


def _merge(winners: list[_Outputs], request_id: str, kind: RequestOutputKind) -> _Outputs:
    """Return the winners' outputs as those of one request with n answers."""
    for index, outputs in enumerate(winners):
        for output in outputs:
            output.request_id = request_id
            output.outputs[0].index = index
            output.finished = False
    if kind is RequestOutputKind.FINAL_ONLY:
        answer = winners[0][-1]
        answer.outputs = [outputs[-1].outputs[0] for outputs in winners]
        answer.finished = True
        return [answer]
    merged = [output for outputs in winners for output in outputs]
    merged[-1].finished = True
    return merged
