"""A prompt's candidates from their first token to the replay, with a stand-in for the engine.

Nothing is claimed about vLLM: its classes only carry what the stand-in says.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.library.registry import ServedProbe
from qprobe_server.vllm_backend.client.prompt_run import PromptRun
from qprobe_server.vllm_backend.client.replay import replay
from qprobe_server.vllm_backend.mail import Scores

DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
LONG = 2048


class Inbox:
    """Has the score 1.0 of every token, and remembers whom nobody asks about any more."""

    address = "ipc:///nowhere"

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def expect(self, key: str) -> Scores:
        """Return what has come of a candidate."""
        return Scores(tokens=[np.ones(LONG + 1, np.float32)])

    def forget(self, key: str) -> None:
        """Note it."""
        self.forgotten.append(key)


class Engine:
    """Samples nothing."""

    errored = False
    dead_error = RuntimeError("dead")

    def __init__(self) -> None:
        self.metrics = RerankMetrics(CollectorRegistry())
        self.inbox: Any = Inbox()
        self.cleanups: list[asyncio.Task[None]] = []

    def get_tokenizer(self) -> Any:
        """Decode token i as one letter; 1,000 tokens take a millisecond."""

        class Tokenizer:
            def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
                assert skip_special_tokens
                until_s = time.thread_time() + len(token_ids) * 1e-6
                text = "".join(chr(97 + token % 26) for token in token_ids)
                while time.thread_time() < until_s:
                    pass
                return text

        return Tokenizer()

    def keep_until_done(self, task: asyncio.Task[None]) -> None:
        """Hold a task."""
        self.cleanups.append(task)


def make_output(
    tokens: Sequence[int], finish: str | None, stop: str | None = None, text: str | None = None
) -> RequestOutput:
    text = "".join(chr(97 + token % 26) for token in tokens) if text is None else text
    part = CompletionOutput(0, text, list(tokens), None, None, finish_reason=finish)
    part.stop_reason = stop
    return RequestOutput("r", None, [1], None, [part], finish is not None)


def make_run(
    served: ServedProbe, *, k: int, kind: RequestOutputKind = FINAL, **fields: Any
) -> tuple[PromptRun, Engine]:
    params = {each: fields.pop(each) for each in ("n", "temperature") if each in fields}
    request = RerankRequest(probes=((served, 1.0),), k=k, beta=0.0, **fields)
    sampling = SamplingParams(output_kind=kind, **{"temperature": 1.0, **params})
    engine, rerank = Engine(), Rerank(request)
    return PromptRun(engine, rerank, rerank.next_prompt(), sampling, None), engine


@pytest.fixture
def probe(served: list[ServedProbe]) -> ServedProbe:
    return served[0]


class Heart:
    """Beats on the event loop.

    Attributes:
        longest_s: The most time that the loop's thread has worked between two beats.
    """

    longest_s = 0.0


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Heart]:
    """Watch the loop; what other processes take of the machine does not count.

    Nor does what holds the interpreter in another thread: tests/unit/test_candidates.py sees to it
    that a result becomes JSON in pieces.
    """
    heart = Heart()

    async def beat() -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            heart.longest_s = max(heart.longest_s, now_s - last_s)
            last_s = now_s

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    yield heart
    await asyncio.sleep(0)
    beating.cancel()


async def test_a_long_replay_gives_way_to_others() -> None:
    """4,000 deltas that take vLLM's serving code and us a second and a half."""
    deltas = [make_output([token], None) for token in range(3999)] + [make_output([0], "stop")]
    params = SamplingParams(output_kind=DELTA)
    tokens = []
    async with heartbeat() as heart:
        async for output in replay([deltas], "r", params):
            until_s = time.thread_time() + 0.0002
            while time.thread_time() < until_s:
                pass
            tokens += output.outputs[0].token_ids
    assert tokens == [*range(3999), 0]
    assert heart.longest_s < 0.05


async def test_showing_many_tokens_gives_way_to_others(probe: ServedProbe) -> None:
    """16 candidates of 2,048 tokens that a stop string ended, with the score of each token."""
    run, _ = make_run(probe, k=16, return_candidates=True, return_token_scores=True)
    tokens = [(7 * each + each // 26) % 1000 for each in range(LONG)]
    text = "".join(chr(97 + token % 26) for token in tokens)
    ended = make_output(tokens, "stop", stop=text[-3:], text=text[:-3])

    async def sample(params: SamplingParams, index: int) -> AsyncGenerator[RequestOutput, None]:
        yield ended

    async with heartbeat() as heart:
        await run.run(sample)
        reply = run.rerank.reply_json()
    assert heart.longest_s < 0.05
    (result,) = json.loads(reply)["results"]
    assert result["candidates"][15]["token_scores"] == [1.0] * (LONG - 3)


Sample = Callable[[SamplingParams, int], AsyncGenerator[RequestOutput, None]]


def sample_until(ends: dict[int, str | None]) -> Sample:
    """Return what ends some candidates at once, as told, and others never."""

    async def sample(params: SamplingParams, index: int) -> AsyncGenerator[RequestOutput, None]:
        yield make_output([1], None) if ends.get(index) is None else make_output([], ends[index])
        if index not in ends:
            await asyncio.Event().wait()

    return sample


@pytest.mark.parametrize(
    ("ends", "n", "expected"),
    [
        ({2: "abort"}, 1, ["abort"]),
        ({0: "stop", 2: "abort"}, 1, ["abort"]),
        ({2: "abort", 3: "stop"}, 2, ["abort", "stop"]),
        ({0: "abort", 1: "abort", 2: "abort", 3: "abort"}, 2, ["abort", "abort"]),
    ],
)
async def test_a_candidate_that_is_given_up_does_not_wait_for_the_others(
    probe: ServedProbe, ends: dict[int, str | None], n: int, expected: list[str]
) -> None:
    run, engine = make_run(probe, k=4, n=n)
    winners = await asyncio.wait_for(run.run(sample_until(ends)), 10)
    assert [outputs[-1].outputs[0].finish_reason for outputs in winners] == expected
    await asyncio.gather(*engine.cleanups)
    assert len(engine.inbox.forgotten) == 4
    assert run.rerank.results == {}


async def test_an_aborted_candidate_waits_for_the_answers_that_are_wanted(
    probe: ServedProbe,
) -> None:
    run, engine = make_run(probe, k=4, n=2)
    running = asyncio.create_task(run.run(sample_until({2: "abort"})))
    await asyncio.sleep(0.05)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.gather(*engine.cleanups)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_what_cannot_be_drawn_is_refused_when_the_run_is_made(
    probe: ServedProbe, temperature: float
) -> None:
    """That is before the first byte of a stream."""
    with pytest.raises(VLLMValidationError, match="n: 3 answers"):
        make_run(probe, k=2, n=3, temperature=1.0)
    if temperature == 0.0:
        run, _ = make_run(probe, k=4, temperature=temperature)
        assert (run.num_candidates, run.rerank.k) == (1, 1)
        assert run.rerank.request.k == 4
        assert "greedy" in str(run.rerank.notice)


@pytest.mark.parametrize("interval", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("num_tokens", [1, 2, 20])
async def test_a_stream_interval_holds_for_the_answer(
    interval: int | None, num_tokens: int
) -> None:
    """As vLLM has it: the first token at once, then so many together, and the rest at the end."""
    deltas = [make_output([token], None) for token in range(num_tokens)]
    deltas[-1].outputs[0].finish_reason = "stop"
    params = SamplingParams(output_kind=DELTA, stream_interval=interval)
    replayed = [output async for output in replay([deltas], "mine", params)]
    given = [list(output.outputs[0].token_ids) for output in replayed]
    assert [token for tokens in given for token in tokens] == list(range(num_tokens))
    assert len(given) == 1 + math.ceil((num_tokens - 1) / (interval or 1))
    assert len(given[0]) == 1
    assert {len(tokens) for tokens in given[1:-1]} <= {interval or 1}
    assert [output.finished for output in replayed] == [False] * (len(given) - 1) + [True]
    assert replayed[-1].outputs[0].finish_reason == "stop"
    assert {output.request_id for output in replayed} == {"mine"}
