"""Clients that leave, queues that are full: nothing stays behind, nothing hangs."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM

from qprobe.probe.schedule import Step
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.library.registry import ServedProbe
from qprobe_server.vllm_backend.client.engine import RerankingLLM

ChatIds = Callable[[str], list[int]]
MAX_QUEUED = 400  # as the engine fixture sets it
HEADED = 82  # the probe that has heads there


async def settle(engine: RerankingLLM) -> tuple[int, int]:
    """Wait, at most 20 s, until nothing runs and nothing is held; return what there still is."""
    for _ in range(100):
        left = (engine.get_num_unfinished_requests(), await engine.num_held_candidates())
        if left == (0, 0):
            break
        await asyncio.sleep(0.2)
    return left


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_that_leave_at_random_moments(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, *, stream: bool
) -> None:
    rng = random.Random(1)
    prompt = chat_ids("Tell me a long story about a fox.")

    async def leave_early() -> None:
        request = asyncio.create_task(ask(prompt, k=4, max_tokens=400, stream=stream))
        await asyncio.sleep(rng.random() * 4)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    await asyncio.gather(*(leave_early() for _ in range(25)))
    assert await settle(engine) == (0, 0)
    assert (await ask(prompt, k=2, max_tokens=4)).result["scores"]


async def test_leaving_aborts_every_candidate(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, until_held: Any
) -> None:
    prompt = chat_ids("Tell me a story.")
    request = asyncio.create_task(ask(prompt, k=16, max_tokens=1500, ignore_eos=True))
    await until_held(16)
    assert engine.get_num_unfinished_requests() == 16
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await asyncio.sleep(0)
    assert engine.get_num_unfinished_requests() == 0
    assert await settle(engine) == (0, 0)


async def test_a_client_that_leaves_while_its_request_is_added(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of turns of the event loop: nothing stays, then or later.

    A candidate that was added with nobody to abort it would run to its end, and be held from then.
    Sending one takes some turns, as it does where the socket is busy.
    """
    prompt = chat_ids("Tell me a long story about a fox.")
    send = engine.engine_core.add_request_async

    async def send_slowly(request: Any) -> None:
        await asyncio.sleep(0)
        await send(request)
        await asyncio.sleep(0)

    monkeypatch.setattr(engine.engine_core, "add_request_async", send_slowly)

    async def leave_after(turns: int) -> None:
        params = {"k": 6, "max_tokens": 48, "ignore_eos": True, "stream": turns % 2 == 0}
        request = asyncio.create_task(ask(prompt, **params))
        for _ in range(turns):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    for turns in range(40):
        await leave_after(turns)
        assert engine.get_num_unfinished_requests() <= 6
    await asyncio.gather(*(leave_after(turns) for turns in range(1, 40)))
    assert await settle(engine) == (0, 0)
    # Whatever the engine was told to begin has begun by now.
    assert (await ask(prompt, k=2, max_tokens=80, ignore_eos=True)).result["scores"]
    assert await settle(engine) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_aborted_while_it_is_sent_leaves_nothing(
    ask: Any,
    engine: RerankingLLM,
    chat_ids: ChatIds,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
) -> None:
    """By its id, when the engine has got some of its candidates."""
    send = engine.engine_core.add_request_async
    sent = asyncio.Event()

    async def send_slowly(request: Any) -> None:
        await send(request)
        if request.request_id.startswith("2_"):
            sent.set()
            await asyncio.sleep(0.05)

    monkeypatch.setattr(engine.engine_core, "add_request_async", send_slowly)
    asked: dict[str, Any] = {"k": 8, "max_tokens": 60, "ignore_eos": True, "stream": stream}
    request = asyncio.create_task(ask(chat_ids("Hello"), request_id="mine", **asked))
    await sent.wait()
    await engine.abort("mine")
    answer = await asyncio.wait_for(request, 10)
    assert answer.outputs[-1].outputs[0].finish_reason == "abort"
    assert await settle(engine) == (0, 0)
    assert (await ask(chat_ids("Hello"), k=2, max_tokens=70, ignore_eos=True)).result["scores"]
    assert await settle(engine) == (0, 0)


async def test_admission_counts_candidates(engine: RerankingLLM, served: list[ServedProbe]) -> None:
    def make(k: int, **fields: Any) -> Rerank:
        return Rerank(RerankRequest(probes=((served[0], 1.0),), k=k, beta=0.1, **fields))

    token = current_rerank.set(make(MAX_QUEUED))
    try:
        engine.check_admission(1)
        current_rerank.set(make(MAX_QUEUED + 1))
        with pytest.raises(VLLMValidationError, match=r"q_probe\.k: 401 .* 400") as refused:
            engine.check_admission(1)
        assert refused.value.parameter == "q_probe.k"
        current_rerank.set(make(MAX_QUEUED + 1, temperature=0.0))
        engine.check_admission(1)
    finally:
        current_rerank.reset(token)
    engine.check_admission(1)


async def test_a_request_that_does_not_fit_the_queue_leaves_nothing(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds
) -> None:
    prompt = chat_ids("Hello")
    answers = await asyncio.gather(
        *(ask(prompt, k=150, max_tokens=2) for _ in range(3)), return_exceptions=True
    )
    refused = [each for each in answers if isinstance(each, GracefulHTTPError)]
    assert len(refused) == 1
    assert not [each for each in answers if isinstance(each, BaseException)][1:]
    assert await settle(engine) == (0, 0)


async def test_a_prompts_own_candidates_do_not_fill_the_queue_of_tokens(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 candidates the fourth would find the prompts of three waiting to be read.

    Nor do those of a request's first prompt fill it for the second.
    """
    prompt = chat_ids("Hello")
    monkeypatch.setattr(engine.scheduler_config, "max_num_queued_tokens", 3 * len(prompt))
    answers = await asyncio.gather(*(ask(prompt, k=16, max_tokens=2) for _ in range(2)))
    assert [len(answer.result["scores"]) for answer in answers] == [16, 16]


async def test_an_engine_that_is_to_stop_waits_for_its_prompts(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of responses in the background; the engine gets the rest of the time."""
    prompt = asyncio.create_task(ask(chat_ids("Hello"), k=2, max_tokens=32, ignore_eos=True))
    while not engine.get_num_unfinished_requests():  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(0.01)
    stopped: list[tuple[bool, float]] = []

    def stop(_: AsyncLLM, timeout: float) -> None:
        stopped.append((engine.get_num_unfinished_requests() == 0, timeout))

    monkeypatch.setattr(AsyncLLM, "shutdown", stop)
    await asyncio.to_thread(engine.shutdown, 60)
    ((has_ended, left_s),) = stopped
    assert has_ended
    assert 0 < left_s < 60
    assert len((await prompt).result["scores"]) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_aborted_by_its_own_id(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds, *, stream: bool
) -> None:
    """With all its candidates, also those that a schedule still compares."""
    prompt = chat_ids("Tell me a story.")
    for probe, schedule in ((0, ()), (HEADED, (Step(16, 2),))):
        asked: dict[str, Any] = {"k": 8, "max_tokens": 1500, "ignore_eos": True, "stream": stream}
        request = asyncio.create_task(
            ask(prompt, probe=probe, schedule=schedule, request_id="mine", **asked)
        )
        while engine.get_num_unfinished_requests() < 8:  # noqa: ASYNC110  # vLLM has no event for it
            await asyncio.sleep(0.01)
        await engine.abort("mine")
        answer = await asyncio.wait_for(request, 10)
        assert answer.outputs[-1].outputs[0].finish_reason == "abort"
        assert answer.result == {}
        assert await settle(engine) == (0, 0)
