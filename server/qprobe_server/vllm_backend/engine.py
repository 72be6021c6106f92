"""vLLM's engine client with one difference: ``generate`` answers with the best of k by a probe.

Relies on vLLM 0.32.0: ``AsyncLLM.generate/check_admission/abort`` (v1/engine/async_llm.py),
``AsyncMPClient._call_utility_async, core_engines`` and, with data parallelism,
``DPLBAsyncMPClient.engine_inflight`` (v1/engine/core_client.py).
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from copy import copy
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.prometheus import get_prometheus_registry

from qprobe import Probe, beta_for_kl
from qprobe_server.candidates import (
    Candidate,
    check_finite,
    choose,
    combine,
    count_scored_tokens,
    make_result,
    show_candidates,
)
from qprobe_server.errors import ScoringError
from qprobe_server.metrics import Outcome, RerankMetrics
from qprobe_server.rerank import Rerank, current_rerank
from qprobe_server.vllm_backend.scoring import EXTRA_ARG
from qprobe_server.vllm_backend.tracing import rerank_span

__all__ = ["RerankingLLM"]

# vLLM samples greedily below this temperature (sampling_params._SAMPLING_EPS).
_GREEDY_BELOW = 1e-5
# How often a wait for the workers looks whether the engine still lives.
_CHECK_ENGINE_S = 1.0
# Probes that are given to the workers in one call: 4 MiB of a hidden size of 4,096.
_LOADED_AT_ONCE = 256

_Outputs = list[RequestOutput]


class RerankingLLM(AsyncLLM):
    """Reranks the requests around which ``current_rerank`` is set; others are vLLM's own.

    vLLM awaits ``generate`` in the task of the HTTP request, so the variable reaches it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = RerankMetrics(get_prometheus_registry())
        self._cleanups: set[asyncio.Task[None]] = set()
        self._candidates_on_rank: Counter[int] = Counter()

    async def load_probes(self, probes: Sequence[tuple[int, Probe]]) -> None:
        """Give the workers linear probes; requests name them by their index.

        In parts, so that steps of the engine come between them.
        """
        rows = []
        for index, probe in probes:
            weight, bias = probe.layers[0]
            data = weight[0].numpy().tobytes() + bias.numpy().tobytes()
            rows.append((index, probe.info.layer, probe.info.pooling, probe.info.window, data))
        for start in range(0, len(rows), _LOADED_AT_ONCE):
            await self._call_workers("qprobe_load", rows[start : start + _LOADED_AT_ONCE])

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
        prompt_index = rerank.next_prompt()
        return self._answer(rerank, prompt_index, prompt, sampling_params, request_id, kwargs)

    async def _answer(
        self,
        rerank: Rerank,
        prompt_index: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Rerank one prompt, traced and counted."""
        label = self.metrics.label([probe.name for probe, _ in rerank.probes])
        outcome: Outcome = "error"
        try:
            if await self.is_tracing_enabled():
                with rerank_span(kwargs.get("trace_headers")) as (span, headers):
                    kwargs = {**kwargs, "trace_headers": headers}
                    winners = await self._rerank(
                        rerank, prompt_index, prompt, params, request_id, kwargs
                    )
                    span.set_attributes(_describe(rerank, prompt_index))
            else:
                winners = await self._rerank(
                    rerank, prompt_index, prompt, params, request_id, kwargs
                )
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.metrics.count_prompt(label, outcome)
        for output in _merge(winners, request_id, params.output_kind):
            yield output

    async def _rerank(
        self,
        rerank: Rerank,
        prompt_index: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> list[_Outputs]:
        """Sample the candidates of a prompt and return the outputs of those chosen."""
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
        probes = [probe.index for probe, _ in rerank.probes]
        tasks = [
            asyncio.create_task(
                self._sample(
                    prompt,
                    _candidate_params(params, index, key, probes),
                    f"{request_id}-{index}",
                    kwargs,
                )
            )
            for index, key in enumerate(keys)
        ]
        try:
            outputs = await asyncio.gather(*tasks)
            ended_s = time.monotonic()
            candidates = [_to_candidate(each, params.output_kind) for each in outputs]
            chosen = _find_cut_short(candidates, params.n)
            if chosen is None:
                chosen = await self._choose(rerank, prompt_index, keys, candidates, params, rank)
                self.metrics.observe_overhead(time.monotonic() - ended_s)
                keys = []
        finally:
            if rank is not None:
                self._candidates_on_rank[rank] -= rerank.k
            if keys:
                self._discard(tasks, keys, rank)
        return [outputs[index] for index in chosen]

    async def _choose(
        self,
        rerank: Rerank,
        prompt_index: int,
        keys: list[str],
        candidates: list[Candidate],
        params: SamplingParams,
        rank: int | None,
    ) -> list[int]:
        """Take the candidates' scores, draw, and note the result."""

        def decode(token_ids: Sequence[int]) -> str:
            return self.get_tokenizer().decode(
                list(token_ids), skip_special_tokens=params.skip_special_tokens
            )

        lengths = [count_scored_tokens(each, decode) for each in candidates]
        with_tokens = rerank.return_token_scores
        taken = await self._take_scores(keys, lengths, with_tokens=with_tokens, rank=rank)
        weights = [weight for _, weight in rerank.probes]
        scores = combine([pooled for pooled, _ in taken], weights)
        label = self.metrics.label([probe.name for probe, _ in rerank.probes])
        self.metrics.count_non_finite(label, scores)
        check_finite(scores)
        if rerank.target_kl is None:
            assert rerank.beta is not None
            beta = rerank.beta
        else:
            beta = beta_for_kl(scores, rerank.target_kl)
        draw = choose(scores, beta=beta, n=params.n, seed=params.seed, prompt_index=prompt_index)
        shown = None
        if rerank.return_candidates:
            per_token = [combine([*zip(*each, strict=True)], weights) for _, each in taken]
            shown = show_candidates(
                candidates, token_scores=per_token if with_tokens else None, decode=decode
            )
        result = make_result(candidates, scores, draw, beta=beta, shown=shown)
        rerank.results[prompt_index] = result
        self.metrics.observe(label, result, [len(each.token_ids) for each in candidates])
        return draw.selected

    async def _sample(
        self, prompt: Any, params: SamplingParams, request_id: str, kwargs: dict[str, Any]
    ) -> _Outputs:
        stream = super().generate(prompt, params, request_id, **kwargs)
        return [output async for output in stream]

    async def _take_scores(
        self, keys: list[str], lengths: list[int], *, with_tokens: bool, rank: int | None
    ) -> list[tuple[list[float], list[list[float]]]]:
        """Remove candidates from the workers; see ``ScoringMixin.qprobe_take``.

        Raises:
            ScoringError: The workers do not know a candidate.
        """
        details = "tokens" if with_tokens else "pooled"
        answers = await self._call_workers("qprobe_take", keys, lengths, details, rank=rank)
        taken = []
        for index, found in enumerate(zip(*(each for each in answers if each), strict=True)):
            scores = next((each for each in found if each is not None), None)
            if scores is None:
                raise ScoringError(f"the engine holds no score of candidate {index} of {len(keys)}")
            taken.append(scores)
        return taken

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
    params: SamplingParams, index: int, key: str, probes: list[int]
) -> SamplingParams:
    """Return the parameters of one candidate, seeded as vLLM seeds the children of n = k."""
    mine = copy(params)
    mine.n = 1
    if params.seed is not None:
        mine.seed = params.seed + index
    mine.extra_args = {**(params.extra_args or {}), EXTRA_ARG: [key, probes]}
    return mine


def _describe(rerank: Rerank, prompt_index: int) -> dict[str, Any]:
    """Return the attributes of a prompt's span."""
    about: dict[str, Any] = {
        "qprobe.probe": [probe.name for probe, _ in rerank.probes],
        "qprobe.k": rerank.k,
    }
    result = rerank.results.get(prompt_index)
    if result is not None:
        about["qprobe.selected"] = result.selected
        about["qprobe.kl"] = result.kl
        about["qprobe.sampled_tokens"] = result.sampled_tokens
    return about


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
