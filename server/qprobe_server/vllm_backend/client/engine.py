"""vLLM's engine client with one difference: ``generate`` answers with the best of k by a probe.

Relies on vLLM 0.32.0: ``AsyncLLM.generate/check_admission/shutdown`` and ``scheduler_config,
model_config, output_processor`` (v1/engine/async_llm.py), ``ModelConfig.get_diff_sampling_param``,
``VLLMValidationError`` (exceptions.py), ``ParallelConfig`` (config/parallel.py),
``AsyncMPClient._call_utility_async, core_engines`` and, with data parallelism,
``DPLBAsyncMPClient.engine_inflight`` (v1/engine/core_client.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import logger
from vllm.v1.metrics.prometheus import get_prometheus_registry

from qprobe import Probe
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.edge.metrics import Outcome, RerankMetrics
from qprobe_server.library.registry import ServedProbe
from qprobe_server.library.sums import list_rows
from qprobe_server.vllm_backend.client.fan_out import FanOut, PreparingLLM
from qprobe_server.vllm_backend.client.prompt_run import PromptRun
from qprobe_server.vllm_backend.client.replay import replay
from qprobe_server.vllm_backend.client.tracing import rerank_span
from qprobe_server.vllm_backend.mail import Inbox
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG

__all__ = ["RerankingLLM"]

# How often a wait for the workers looks whether the engine still lives.
_CHECK_ENGINE_S = 1.0
# How often an engine that is to stop looks whether its prompts have ended.
_CHECK_PROMPTS_S = 0.05
# Rows that are given to the workers in one call: 4 MiB of a hidden size of 4,096.
_LOADED_AT_ONCE = 256


class RerankingLLM(PreparingLLM):
    """Reranks the requests around which ``current_rerank`` is set; others are vLLM's own.

    vLLM awaits ``generate`` in the task of the HTTP request, so the variable reaches it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = self._make_metrics()
        self.inbox = Inbox(is_local=_is_one_machine(self.vllm_config.parallel_config))
        self._cleanups: set[asyncio.Task[None]] = set()
        self._candidates_on_rank: Counter[int] = Counter()
        self._running_prompts: set[PromptRun] = set()
        defaults = self.model_config.get_diff_sampling_param()
        self._default_temperature: float = defaults.get("temperature", 1.0)

    async def load_probes(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        """Give the workers the rows of probes; requests name them by their indices.

        In parts, so that steps of the engine come between them.
        """
        rows = [
            (index, *row)
            for served, probe in probes
            for each, terms in zip(served.sums, probe.sums, strict=True)
            for index, row in zip(each.rows, list_rows(terms), strict=True)
        ]
        for start in range(0, len(rows), _LOADED_AT_ONCE):
            await self.call_workers("qprobe_load", rows[start : start + _LOADED_AT_ONCE])

    async def num_held_candidates(self) -> int:
        """Return how many candidates the workers hold scores of: those that the engine runs."""
        counts = await self.call_workers("qprobe_num_candidates")
        return sum(count for count in counts if count is not None)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Count the k candidates of a request instead of its n answers, before it begins.

        Later calls, with a request id, are for the k candidates of each of its prompts. With a
        limit ``max_num_queued_tokens`` these admit all: the candidates of its first prompt, which
        wait to be read, would else refuse those of the next, however often it is tried.

        Raises:
            VLLMValidationError: The request has more candidates than may ever be queued.
        """
        rerank = current_rerank.get()
        if rerank is not None and request_id is None:
            n = self._count_candidates(rerank)
            limit = self.scheduler_config.max_num_queued_reqs
            if limit is not None and n > limit:
                raise VLLMValidationError(
                    f"q_probe.k: {n} candidates are more than the server's --max-num-queued-reqs "
                    f"{limit}",
                    parameter="q_probe.k",
                    value=n,
                )
        elif rerank is not None and self.scheduler_config.max_num_queued_tokens is not None:
            return
        super().check_admission(n, request_id)

    def _count_candidates(self, rerank: Rerank) -> int:
        """Count a prompt's candidates before its sampling parameters are there.

        Greedy is 0 only: ``SamplingParams`` raises what is between 0 and 0.01.
        """
        temperature = rerank.request.temperature
        if temperature is None:
            temperature = self._default_temperature
        return 1 if temperature == 0 else rerank.k

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop the engine; first let the prompts end that are being reranked, within the timeout.

        HTTP requests have ended by then (``edge/stopping.py``); responses in the background have
        not, and of these the losers are still to be dropped and the winner to be chosen. Call it in
        a thread while prompts run: they need the event loop.

        Args:
            timeout: Seconds for the prompts and the engine together; None waits for no prompt.
        """
        if timeout:
            deadline_s = time.monotonic() + timeout
            while self._running_prompts and time.monotonic() < deadline_s:
                time.sleep(_CHECK_PROMPTS_S)
            timeout = max(0.0, deadline_s - time.monotonic())
        super().shutdown(timeout=timeout)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Sample as vLLM does, or rerank.

        What is refused here is refused before the first byte of a stream.

        Raises:
            VLLMValidationError: The request sets the workers' own argument, asks for more answers
                than it has candidates, or for a data-parallel rank that there is not.
        """
        if sampling_params.extra_args and EXTRA_ARG in sampling_params.extra_args:
            raise VLLMValidationError(
                f"vllm_xargs.{EXTRA_ARG} is reserved; use the q_probe object",
                parameter=f"vllm_xargs.{EXTRA_ARG}",
            )
        asked_rank = kwargs.get("data_parallel_rank")
        self._check_rank(asked_rank)
        rerank = current_rerank.get()
        if rerank is None:
            return super().generate(prompt, sampling_params, request_id, **kwargs)
        rank = self.pick_rank(asked_rank)
        run = PromptRun(self, rerank, rerank.next_prompt(), sampling_params, rank)
        kwargs = {**kwargs, "data_parallel_rank": rank}
        return self._answer(run, prompt, request_id, kwargs)

    async def _answer(
        self, run: PromptRun, prompt: Any, request_id: str, kwargs: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Rerank one prompt, traced and counted."""
        outcome: Outcome = "error"
        label = run.label
        try:
            if await self.is_tracing_enabled():
                with rerank_span(kwargs.get("trace_headers")) as (span, headers):
                    kwargs = {**kwargs, "trace_headers": headers}
                    answer = await self._rerank(run, prompt, request_id, kwargs)
                    span.set_attributes(_describe(run))
            else:
                answer = await self._rerank(run, prompt, request_id, kwargs)
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.metrics.count_prompt(label, outcome)
            if outcome != "ok" and self.log_requests:
                logger.info("Request %s: %s.", request_id, outcome)
        del run  # the losers' tokens; the client may be slow to read the winner's
        async for output in answer:
            yield output

    async def _rerank(
        self, run: PromptRun, prompt: Any, request_id: str, kwargs: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Sample the candidates of a prompt and return the outputs of those chosen."""
        rank, k = run.rank, run.num_candidates
        if rank is not None:
            self._candidates_on_rank[rank] += k
        self._running_prompts.add(run)
        try:
            with run.rerank.hold():
                prepared = await self.prepare(prompt, run.params, request_id, **kwargs)
                winners = await run.run(FanOut(self, prepared))
        finally:
            self._running_prompts.remove(run)
            if rank is not None:
                self._candidates_on_rank[rank] -= k
        return replay(winners, prepared, run.params.output_kind, self.output_processor)

    def keep_until_done(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for: asyncio itself keeps weak references only."""
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)

    async def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker of all data-parallel ranks; return all answers.

        Raises:
            EngineDeadError: The engine died meanwhile; vLLM leaves such a call unanswered.
        """
        core = self.engine_core
        call = asyncio.gather(
            *(
                core._call_utility_async("collective_rpc", method, None, args, None, engine=engine)
                for engine in core.core_engines
            )
        )
        while not call.done():
            await asyncio.wait({call}, timeout=_CHECK_ENGINE_S)
            if not call.done() and self.errored:
                call.cancel()
                raise self.dead_error
        return [answer for engine in call.result() for answer in engine]

    def _make_metrics(self) -> RerankMetrics:
        return RerankMetrics(get_prometheus_registry())

    def _check_rank(self, asked: int | None) -> None:
        num_engines = len(self.engine_core.core_engines)
        if asked is not None and not 0 <= asked < num_engines:
            raise VLLMValidationError(
                f"X-data-parallel-rank: must be from 0 to {num_engines - 1}, got {asked}",
                parameter="X-data-parallel-rank",
                value=asked,
            )

    def pick_rank(self, asked: int | None) -> int | None:
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


def _is_one_machine(parallel: Any) -> bool:
    """Whether all workers of all ranks run here, by vLLM's ``ParallelConfig``."""
    return bool(
        parallel.nnodes == 1
        and parallel.distributed_executor_backend in (None, "mp", "uni")
        and parallel.data_parallel_backend == "mp"
        and parallel.data_parallel_size_local == parallel.data_parallel_size
    )


def _describe(run: PromptRun) -> dict[str, Any]:
    """Return the attributes of a prompt's span."""
    rerank = run.rerank
    about: dict[str, Any] = {
        "qprobe.probe": [probe.name for probe, _ in rerank.request.probes],
        "qprobe.k": rerank.k,
    }
    result = rerank.results.get(run.prompt_index)
    if result is not None:
        about["qprobe.selected"] = result.selected
        if result.kl is not None:
            about["qprobe.kl"] = result.kl
        about["qprobe.sampled_tokens"] = result.sampled_tokens
    return about
