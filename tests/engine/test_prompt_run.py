"""A prompt's candidates from their first token to the replay, with a stand-in for the engine.

Of vLLM only its output processor works here; its other classes carry what the stand-in says.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists

from qprobe.probe.schedule import Step
from qprobe.probe.values import NUMBERS
from qprobe_server.choice.code_vote import CodeRunner
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.vote import Vote, VoteReader
from qprobe_server.choice.vote_schemas import VoteRequest
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.library.registry import ServedProbe
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.client.fan_out import Prepared
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
    """Samples nothing.

    Attributes:
        asked: By ``Requests``: one after another.
    """

    errored = False
    dead_error = RuntimeError("dead")

    def __init__(self) -> None:
        self.metrics = RerankMetrics(CollectorRegistry())
        self.inbox: Any = Inbox()
        self.asked: list[str] = []
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


Give = Callable[[int, CandidateRun], None]


class Requests:
    """Begins candidates by a function."""

    asked_workers = False

    def __init__(self, engine: Engine, give: Give) -> None:
        self._give = give
        self._asked = engine.asked

    def begin(self, candidates: Sequence[CandidateRun], ask: Any) -> None:
        self._asked.append("begin")
        for index, candidate in enumerate(candidates):
            asked = ask(candidate)
            assert asked is None or candidate.key in asked
            self.asked_workers |= asked is not None
            self._give(index, candidate)

    async def abort(self, some: Sequence[CandidateRun]) -> None:
        self._asked.append("abort")

    async def end(self) -> None:
        await asyncio.sleep(0)
        self._asked.append("end")


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


def make_winner(num_tokens: int) -> CandidateRun:
    """Return a candidate that the length ended; token i is i."""
    winner = CandidateRun("key", None, lambda: None)
    for token in range(num_tokens):
        ends = FinishReason.LENGTH if token == num_tokens - 1 else None
        winner.tape.update_from_output(EngineCoreOutput("r", [token], finish_reason=ends))
    winner.put(make_output(range(num_tokens), "length"))
    return winner


def play(winner: CandidateRun) -> AsyncIterator[RequestOutput]:
    """Stream it, without texts."""
    params = SamplingParams(max_tokens=10_000, detokenize=False)
    request = EngineCoreRequest(
        request_id="r-1",
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="r",
    )
    theirs = OutputProcessor(None, log_stats=False)
    return replay([winner], Prepared(request, None), DELTA, theirs)


async def test_long_replays_give_way_to_others() -> None:
    """Sixteen of 1,000 deltas, each of which takes vLLM's serving code a fifth of a millisecond.

    They share one turn: each with one of its own would hold the loop for sixteen.
    """
    beaten = []

    async def read() -> None:
        tokens = []
        async for output in play(make_winner(1000)):
            until_s = time.thread_time() + 0.0002
            while time.thread_time() < until_s:
                pass
            tokens += output.outputs[0].token_ids
        beaten.append(tokens)

    async with heartbeat() as heart:
        reading = [asyncio.create_task(read()) for _ in range(16)]
        await asyncio.sleep(0.1)  # made, and on their way
        heart.longest_s = 0.0
        await asyncio.gather(*reading)
    assert beaten == [list(range(1000))] * 16
    assert heart.longest_s < 0.05


async def test_showing_many_tokens_gives_way_to_others(probe: ServedProbe) -> None:
    """16 candidates of 2,048 tokens that a stop string ended, with the score of each token."""
    run, engine = make_run(probe, k=16, return_candidates=True, return_token_scores=True)
    tokens = [(7 * each + each // 26) % 1000 for each in range(LONG)]
    text = "".join(chr(97 + token % 26) for token in tokens)
    ended = make_output(tokens, "stop", stop=text[-3:], text=text[:-3])

    async with heartbeat() as heart:
        await run.run(Requests(engine, lambda _, candidate: candidate.put(ended)))
        reply = run.rerank.reply_json()
    assert heart.longest_s < 0.05
    (result,) = json.loads(reply)["results"]
    assert result["candidates"][15]["token_scores"] == [1.0] * (LONG - 3)


LOGPROBS = LogprobsLists(
    np.array([[5, 1], [6, 1], [7, 1]]),
    np.array([[-0.5, -9.0], [-1.0, -9.0], [-4.0, -9.0]], np.float32),
    np.zeros(3, np.int64),
)


async def test_numbers_are_those_of_what_was_sampled(served: list[ServedProbe]) -> None:
    """Of a candidate that stops at its third token and of one that is cut there.

    No worker is asked, and no log-probability is kept for the answer, which wants none.
    """
    (probe,) = (each for each in served if each.name == "numbers-heads")
    weights = probe.score.numbers
    run, engine = make_run(probe, k=2, n=2)

    def give(index: int, candidate: CandidateRun) -> None:
        finish = FinishReason.STOP if index == 0 else FinishReason.LENGTH
        step = EngineCoreOutput("r", [5, 6, 7], finish_reason=finish, new_logprobs=LOGPROBS)
        candidate.tape.update_from_output(step)
        candidate.put(make_output([5, 6, 7], str(finish)))
        assert candidate.tape.sums_logprobs
        assert not candidate.tape.is_undecoded
        for tokens, total, length, cut in ((None, -5.5, 3, index), (2, -1.5, 2, 1)):
            assert candidate.read_numbers(tokens) == {
                "mean_logprob": total / length,
                "total_logprob": total,
                "length": length,
                "log_length": math.log(length),
                "cut": cut,
            }

    requests = Requests(engine, give)
    await run.run(requests)
    assert not requests.asked_workers
    expected = [
        sum(
            weights[name] * value
            for name, value in zip(NUMBERS, (-5.5 / 3, -5.5, 3, math.log(3), cut), strict=True)
        )
        for cut in (0, 1)
    ]
    assert run.rerank.results[0].scores == pytest.approx(expected)


async def test_log_probabilities_are_wanted_only_where_they_are_read(
    served: list[ServedProbe],
) -> None:
    """By the score, by the confidence, or by the heads of a schedule that is followed."""
    by_name = {each.name: each for each in served}

    def is_wanted(name: str, **fields: Any) -> bool:
        run, _ = make_run(by_name[name], k=4, **fields)
        return all(each.tape.sums_logprobs for each in run._candidates)

    assert is_wanted("logprob")
    assert is_wanted("all")
    assert not is_wanted("states")
    assert not is_wanted("gates")
    assert not is_wanted("length")
    assert not is_wanted("length", schedule=(Step(4, 4),))
    assert is_wanted("length", schedule=(Step(4, 1),))


def end_some(ends: dict[int, str]) -> Give:
    """Return what ends some candidates at once, as told, and others never."""

    def give(index: int, candidate: CandidateRun) -> None:
        if index in ends:
            candidate.put(make_output([], ends[index]))

    return give


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
    probe: ServedProbe, ends: dict[int, str], n: int, expected: list[str]
) -> None:
    run, engine = make_run(probe, k=4, n=n)
    winners = await asyncio.wait_for(run.run(Requests(engine, end_some(ends))), 10)
    assert [winner.read().finish_reason for winner in winners] == expected
    await asyncio.gather(*engine.cleanups)
    assert engine.asked == ["begin", "end"]
    assert len(engine.inbox.forgotten) == 4
    assert run.rerank.results == {}


async def test_an_aborted_candidate_waits_for_the_answers_that_are_wanted(
    probe: ServedProbe,
) -> None:
    run, engine = make_run(probe, k=4, n=2)
    running = asyncio.create_task(run.run(Requests(engine, end_some({2: "abort"}))))
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


@pytest.mark.parametrize("error", [EngineDeadError(), VLLMValidationError("no"), KeyError("x")])
async def test_a_failure_of_the_engine_ends_the_prompt(
    probe: ServedProbe, error: Exception
) -> None:
    """As AsyncLLM.generate raises it; what is left is aborted, then forgotten."""
    run, engine = make_run(probe, k=4)

    def give(index: int, candidate: CandidateRun) -> None:
        if index == 2:
            candidate.put(error)

    with pytest.raises(EngineGenerateError if isinstance(error, KeyError) else type(error)):
        await asyncio.wait_for(run.run(Requests(engine, give)), 10)
    await asyncio.gather(*engine.cleanups)
    assert engine.asked == ["begin", "end"]
    assert len(engine.inbox.forgotten) == 4


async def test_nobody_is_woken_by_the_tokens_of_candidates(
    probe: ServedProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only by their ends: 4 candidates of 500 tokens, and the prompt's task runs 4 times or so."""
    run, engine = make_run(probe, k=4)
    candidates: list[CandidateRun] = []
    task = asyncio.create_task(run.run(Requests(engine, lambda _, each: candidates.append(each))))
    await asyncio.sleep(0)
    looked = 0

    def look(*_: Any) -> bool:
        nonlocal looked
        looked += 1
        return all(each.has_ended for each in candidates)

    monkeypatch.setattr(run, "_have_ended", look)
    for token in range(500):
        for each in candidates:
            each.tape.update_from_output(EngineCoreOutput("r", [token]))
        await asyncio.sleep(0)
    for each in candidates:
        each.put(make_output(range(500), "length"))
        await asyncio.sleep(0)
    assert [winner.tape.num_tokens for winner in await task] == [500]
    assert looked <= 5


def vote_by(**asked: Any) -> Vote:
    return VoteReader(CodeRunner(num_workers=2, max_prompts=1)).read(VoteRequest(**asked))


async def vote_among(
    served: ServedProbe, texts: Sequence[str], vote: Vote, **fields: Any
) -> tuple[dict[str, Any], PromptRun, Engine]:
    """Run a prompt whose candidates have these texts, and equal scores; return its reply."""
    run, engine = make_run(served, k=len(texts), vote=vote, **fields)
    outputs = [make_output([1, 2], "stop", text=text) for text in texts]
    winners = await run.run(Requests(engine, lambda index, each: each.put(outputs[index])))
    reply = json.loads(run.rerank.reply_json())
    (result,) = reply["results"]
    assert [run._candidates.index(each) for each in winners] == result["selected"]
    return reply, run, engine


async def test_equal_answers_outvote_others(probe: ServedProbe) -> None:
    texts = ["It is 7.", "8", "so 7.0", "none", "9"]
    reply, _, engine = await vote_among(
        probe, texts, vote_by(by="numeric"), n=2, return_candidates=True
    )
    (result,) = reply["results"]
    assert result["vote"] == {
        "classes": [0, 1, 0, None, 2],
        "weights": [1.0, 0.0, 0.0],
        "answers": ["7", "8", "9"],
    }
    assert result["selected"][0] in (0, 2)
    assert result["selected"][1] in (1, 4)
    assert result["weights"] == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert result["kl"] is None
    counted = engine.metrics.votes._votes.labels("numeric")._value.get()
    assert counted == 1


async def test_code_is_run_and_its_results_vote(probe: ServedProbe) -> None:
    codes = ["def f(x): return x * x", "def f(x): return x + x", "def f(x): return x ** 2"]
    codes.append("def f(x):\n while True: pass")
    reply, *_ = await vote_among(probe, codes, vote_by(by="code", inputs=["f(3)"]))
    assert reply["results"][0]["vote"] == {"classes": [0, 1, 0, None], "weights": [1.0, 0.0]}
    assert reply["results"][0]["selected"][0] in (0, 2)
    tested = vote_by(by="code", tests=["assert f(3) == 6"])
    reply, *_ = await vote_among(probe, codes, tested, n=2)
    assert reply["results"][0]["vote"]["classes"] == [None, 0, None, None]
    assert reply["results"][0]["selected"][0] == 1
    assert "notice" not in reply


async def test_without_an_answer_the_scores_decide(probe: ServedProbe) -> None:
    reply, *_ = await vote_among(probe, ["a", "b"], vote_by(by="numeric"))
    assert reply["notice"] == "no candidate has an answer by numeric: the scores decide"
    assert reply["results"][0]["vote"] == {"classes": [None, None], "weights": []}
    assert reply["results"][0]["weights"] == [0.5, 0.5]


async def test_a_client_that_leaves_a_vote_ends_it(probe: ServedProbe) -> None:
    """Programs of 9 s each: the loop is free meanwhile, and the engine's requests are ended."""
    codes = [f"def f(x):\n import time\n time.sleep(9 + {i})" for i in range(8)]
    vote = vote_by(by="code", inputs=["f(3)"])
    run, engine = make_run(probe, k=8, vote=vote)
    outputs = [make_output([1, 2], "stop", text=text) for text in codes]
    give = Requests(engine, lambda index, each: each.put(outputs[index]))
    async with heartbeat() as heart:
        task = asyncio.create_task(run.run(give))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert heart.longest_s < 0.05
    await asyncio.gather(*engine.cleanups)
    assert engine.asked == ["begin", "end"]
    begun_s = time.monotonic()
    assert (await vote.group(["def f(x): return x"])).of == [0]
    assert time.monotonic() - begun_s < 9
