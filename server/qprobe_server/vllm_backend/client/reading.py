"""Reads completions that are there already: one pass of the engine each, scored as if sampled.

Each is a request of one token whose prompt holds the completion. Those of a prompt have a cache of
their own, by vLLM's ``cache_salt``: so the engine reads the prompt once, and where several begin
alike it reads that once too. What it took from the cache it has not scored, but one of the others
has, as nobody else could have put it there.

Relies on vLLM 0.32.0: ``tokens_input`` (inputs/engine.py); a request finds the blocks in the cache
that a former one of the same step is to compute, as ``KVCacheManager.allocate_slots``
(v1/core/kv_cache_manager.py) enters them when they are given out.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import SamplingParams

from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.errors import ScoringError
from qprobe_server.library.sums import ServedSum
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.client.fan_out import FanOut
from qprobe_server.vllm_backend.client.score_client import ScoreClient, Taken

__all__ = ["ReadingLLM", "read_completions"]

Tokens = Sequence[int]


class ReadingLLM(RerankingLLM):
    """The client of an engine that reads and nothing else."""

    def _make_metrics(self) -> RerankMetrics:
        """Return metrics that nobody sees: who has it read counts what is reranked."""
        return RerankMetrics(CollectorRegistry())


async def read_completions(
    engine: RerankingLLM,
    prompt: Tokens,
    completions: Sequence[Tokens],
    *,
    sums: Sequence[ServedSum],
    numbers: Sequence[Mapping[str, float]],
    with_tokens: bool = False,
) -> list[Taken]:
    """Score completions of one prompt.

    Args:
        engine: Has loaded the probes.
        prompt: Its tokens, at least one.
        completions: Theirs, at least one completion; each fits with the prompt and one token more
            into the model's context.
        sums: What they are scored by, of probes that the engine has loaded.
        numbers: Of each completion, as ``read_numbers`` of ``qprobe.probe.pooling`` gives them.
        with_tokens: Whether the scores of the tokens are wanted too.

    Raises:
        VLLMValidationError: The longest does not fit.
        ScoringError: The engine does not tell.
        EngineDeadError: The engine died meanwhile.
    """
    changed = asyncio.Event()
    runs = [CandidateRun(uuid.uuid4().hex, None, changed.set) for _ in completions]
    scores = ScoreClient(engine, runs, sums, {})
    whole = [[*prompt, *each] for each in completions]
    salt = uuid.uuid4().hex
    prepared = await engine.prepare(
        tokens_input(max(whole, key=len), cache_salt=salt),
        SamplingParams(max_tokens=1, temperature=0, detokenize=False),
        f"read-{salt}",
        data_parallel_rank=engine.pick_rank(None),
    )
    requests = FanOut(engine, prepared, whole)

    def ask(run: CandidateRun) -> list[Any] | None:
        asked = scores.ask(run)
        return None if asked is None else [*asked, len(prompt) - 1]

    is_done = False
    try:
        requests.begin(runs, ask)
        await _until_ended(runs, changed)
        await scores.share(completions)
        lengths = [len(each) for each in completions]
        taken = await scores.take(lengths, numbers=numbers, with_tokens=with_tokens)
        is_done = True
    finally:
        if not is_done:
            scores.drop()
            # In a task of its own: a cancelled request cancels every further wait of its own.
            engine.keep_until_done(asyncio.create_task(requests.end()))
    return taken


async def _until_ended(runs: Sequence[CandidateRun], changed: asyncio.Event) -> None:
    while True:
        changed.clear()
        for each in runs:
            if each.failure is not None:
                raise each.failure
            if each.was_cut_short:
                raise ScoringError("the engine gave up on a completion before it had read it")
        if all(each.has_ended for each in runs):
            return
        await changed.wait()
