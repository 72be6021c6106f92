"""A prompt's candidates as requests of vLLM's engine: read once, copied k times, as its own n is.

Relies on vLLM 0.32.0: ``AsyncLLM.add_request`` ends with ``_add_request`` for n = 1, and for n > 1
copies the ``EngineCoreRequest`` it has made, checks admission once, and adds the copies by
``OutputProcessor.add_request`` and ``AsyncMPClient.add_request_async`` (v1/engine/async_llm.py,
output_processor.py, core_client.py); ``OutputProcessor.external_req_ids`` holds several requests of
one id, and ``request_states`` the state of each; ``AsyncLLM.abort``;
``SamplingParams.num_logprobs`` (sampling_params.py).
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM, logger

from qprobe_server.edge.turns import Turns
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun, wrap_failure
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG

__all__ = ["FanOut", "Prepared", "PreparingLLM"]


@dataclass(frozen=True)
class Prepared:
    """A request as vLLM has read it, not added yet."""

    request: EngineCoreRequest
    prompt_text: str | None


# Where ``prepare`` wants the request put that this task adds.
_wanted: ContextVar[list[Prepared] | None] = ContextVar("_wanted", default=None)


class PreparingLLM(AsyncLLM):
    """vLLM's client, which can also read a request without adding it."""

    async def prepare(
        self, prompt: Any, params: SamplingParams, request_id: str, **kwargs: Any
    ) -> Prepared:
        """Do what ``add_request`` does, up to adding the request.

        Args:
            prompt: As for ``generate``.
            params: Of the answer; what is prepared is one sample of it that nobody streams.
            request_id: The request's own; vLLM makes one of its own of it.
            **kwargs: As for ``generate``.

        Raises:
            Exception: What ``generate`` would raise.
        """
        mine = copy(params)
        mine.n = 1
        mine.output_kind = RequestOutputKind.FINAL_ONLY
        wanted: list[Prepared] = []
        token = _wanted.set(wanted)
        try:
            await self.add_request(request_id, prompt, mine, **kwargs)
        except Exception as error:  # noqa: BLE001 generate() wraps whatever comes, too
            failure = wrap_failure(error)
            raise failure from failure.__cause__
        finally:
            _wanted.reset(token)
        (prepared,) = wanted
        return prepared

    async def _add_request(
        self, request: EngineCoreRequest, prompt: str | None, *others: Any, **named: Any
    ) -> None:
        wanted = _wanted.get()
        if wanted is None:
            await super()._add_request(request, prompt, *others, **named)
        else:
            wanted.append(Prepared(request, prompt))


class FanOut:
    """The requests of one prompt's candidates.

    All have the request's own id beside one of their own, so that an abort by it reaches them.

    Args:
        engine: vLLM's client.
        prepared: What all have in common.
        prompts: The tokens of each, where they are not in common.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        prepared: Prepared,
        prompts: Sequence[list[int]] | None = None,
    ) -> None:
        self._engine = engine
        self._prepared = prepared
        self._prompts = prompts
        self._ids: dict[str, str] = {}  # of the requests in the engine, by the candidate's key
        self._sending: asyncio.Task[None] | None = None

    def begin(
        self, candidates: Sequence[CandidateRun], ask: Callable[[CandidateRun], list[Any] | None]
    ) -> None:
        """Add a request for each candidate, seeded as vLLM seeds the children of n = k.

        They are sent to the engine by a task that nobody cancels: of a request that is cancelled
        while it is sent it is not known whether the engine has it.

        Args:
            candidates: Where their outputs go.
            ask: What the request of a candidate tells the worker; None: nothing.

        Raises:
            QueueOverflowError: With them, too many requests would be queued.
            MaxQueuedTokensError: Too many tokens of prompts are queued.
        """
        common = self._prepared.request
        self._engine.check_admission(len(candidates), common.request_id)
        requests = []
        for index, candidate in enumerate(candidates):
            request = copy(common)
            request.request_id = f"{index}_{common.request_id}"
            if self._prompts is not None:
                request.prompt_token_ids = self._prompts[index]
            request.sampling_params = params = copy(common.sampling_params)
            if params.seed is not None:
                params.seed += index
            asked = ask(candidate)
            if asked is not None:
                params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: asked}
            if candidate.tape.sums_logprobs and params.num_logprobs is None:
                params.logprobs = 0  # those of the tokens that are sampled
            self._register(request, candidate)
            requests.append(request)
        self._sending = asyncio.create_task(self._send(requests, candidates))

    def _register(self, request: EngineCoreRequest, candidate: CandidateRun) -> None:
        processor = self._engine.output_processor
        processor.add_request(request, self._prepared.prompt_text, None, 0, candidate)
        processor.request_states[request.request_id].logprobs_processor = candidate.tape
        self._ids[candidate.key] = request.request_id

    async def _send(
        self, requests: Sequence[EngineCoreRequest], candidates: Sequence[CandidateRun]
    ) -> None:
        turns = Turns()
        try:
            for request in requests:
                # One that was aborted meanwhile would be added with nobody to abort it again.
                if self._engine.output_processor.has_request(request.request_id):
                    await self._engine.engine_core.add_request_async(request)
                    if self._engine.log_requests:
                        logger.info("Added request %s.", request.request_id)
                await turns.give_way()
        except Exception as error:  # noqa: BLE001 the candidates' reader raises it, whatever it is
            for candidate in candidates:
                candidate.put(error)

    async def abort(self, some: Sequence[CandidateRun]) -> None:
        """Have the engine drop candidates; those that have ended stay as they are."""
        await self._engine.abort([self._ids[each.key] for each in some], internal=True)

    async def end(self) -> None:
        """Abort all that are left; when this returns the engine has been told of all of them."""
        ids = list(self._ids.values())
        if ids:
            await self._engine.abort(ids, internal=True)
        if self._sending is not None and not self._sending.done():
            await self._sending
            await self._engine.engine_core.abort_requests_async(ids)  # the one that was on its way
