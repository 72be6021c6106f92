"""What a request may ask of a vote, and what the reply tells of it."""

import asyncio
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from qprobe import Draw
from qprobe.errors import SandboxError
from qprobe.probe.schedule import Step
from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.equal import Classes
from qprobe_server.choice import code_vote, search_vote
from qprobe_server.choice.code_vote import CodeRunner
from qprobe_server.choice.draw import choose
from qprobe_server.choice.fair_pool import FairPool, Share
from qprobe_server.choice.request import RerankRequest, resolve
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.result import make_result
from qprobe_server.choice.schemas import CandidateReply
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge.metrics import VoteMetrics
from qprobe_server.errors import RequestError, ScoringError
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

VOTES = VoteReader()
WITH_CODE = VoteReader(CodeRunner(num_workers=2, max_prompts=2))
CALL = {"by": "code", "inputs": ["f(3)"]}


def read(
    registry: ProbeRegistry,
    vote: object,
    *,
    settings: Settings | None = None,
    votes: VoteReader = VOTES,
    prompts: dict[str, Any] | None = None,
    **fields: Any,
) -> RerankRequest:
    q_probe = {"probe": "good", **fields, "vote": vote}
    body = {"model": "base", **(prompts or {}), "q_probe": q_probe}
    request = resolve(
        body,
        settings=settings or Settings(),
        registry=registry,
        votes=votes,
        is_model="base".__eq__,
        list_adapters=dict,
        reads_best_of=False,
    )
    assert request is not None
    return request


@pytest.mark.parametrize(
    ("vote", "param", "said"),
    [
        ("numeric", "q_probe.vote", "must be an object with the field by"),
        ([], "q_probe.vote", "must be an object with the field by"),
        (True, "q_probe.vote", "must be an object with the field by"),
        ({}, "q_probe.vote.by", "field required"),
        ({"by": "number"}, "q_probe.vote.by", "'numeric', 'regex'"),
        ({"by": None}, "q_probe.vote.by", "'numeric', 'regex'"),
        ({"by": ["text"]}, "q_probe.vote.by", "'numeric', 'regex'"),
        ({"by": "text", "beta": 1}, "q_probe.vote.beta", "the fields are by, pattern, inputs"),
        ({"by": "text", "pattern": "a"}, "q_probe.vote.pattern", "belongs to a vote by 'regex'"),
        ({"by": "regex"}, "q_probe.vote.pattern", "is missing"),
        ({"by": "regex", "pattern": None}, "q_probe.vote.pattern", "is missing"),
        ({"by": "regex", "pattern": 1}, "q_probe.vote.pattern", "valid string"),
        ({"by": "regex", "pattern": "a" * 1001}, "q_probe.vote.pattern", "1000 characters"),
        ({**CALL, "by": "text"}, "q_probe.vote.inputs", "belongs to a vote by 'code'"),
        ({"by": "json", "tests": ["f(1)"]}, "q_probe.vote.tests", "belongs to a vote by 'code'"),
        ({**CALL, "pattern": "a"}, "q_probe.vote.pattern", "belongs to a vote by 'regex'"),
        ({"by": "code"}, "q_probe.vote.inputs", "must be a non-empty list of calls"),
        ({"by": "code", "inputs": []}, "q_probe.vote.inputs", "at least 1 item"),
        ({"by": "code", "inputs": "f(3)"}, "q_probe.vote.inputs", "valid list"),
        ({"by": "code", "inputs": ["f(3)", 3]}, "q_probe.vote.inputs.1", "valid string"),
        ({"by": "code", "inputs": ["f(3)"] * 33}, "q_probe.vote.inputs", "at most 32 items"),
        ({"by": "code", "tests": ["f(3)"] * 33}, "q_probe.vote.tests", "at most 32 items"),
        ({"by": "code", "inputs": ["f("]}, "q_probe.vote.inputs.0", "is not Python"),
        ({"by": "code", "inputs": ["f(1)", "a = 1"]}, "q_probe.vote.inputs.1", "an expression"),
        ({"by": "code", "inputs": ["f(g(1))"]}, "q_probe.vote.inputs", "'f'"),
        ({"by": "code", "inputs": ["1 + 1"]}, "q_probe.vote.inputs.0", "an expression"),
        ({"by": "code", "inputs": ["f(1)", "len(())"]}, "q_probe.vote.inputs.1", "calls nothing"),
        ({"by": "code", "tests": ["assert f(1) =="]}, "q_probe.vote.tests.0", "is not Python"),
        ({"by": "code", "tests": ["a = 1"]}, "q_probe.vote.tests", "check nothing"),
        (
            {"by": "code", "tests": ["assert f(1)" + "+1" * 400 + " == 3"]},
            "q_probe.vote.tests",
            "is nested too deeply",
        ),
        ({**CALL, "setup": 3}, "q_probe.vote.setup", "valid string"),
        ({**CALL, "setup": "import"}, "q_probe.vote.setup", "is not Python"),
        ({**CALL, "entry_point": 3}, "q_probe.vote.entry_point", "valid list"),
        ({**CALL, "entry_point": ["f", 3]}, "q_probe.vote.entry_point", "valid string"),
        ({**CALL, "entry_point": "3"}, "q_probe.vote.entry_point", "the name of a function"),
        ({**CALL, "setup": "#" * 70_000}, "q_probe.vote", "more than 65536"),
        (
            {"by": "code", "tests": ["f()\n" * 257]},
            "q_probe.vote.tests",
            "257 calls, more than 256",
        ),
    ],
)
def test_a_vote_that_is_none_names_its_field(
    registry: ProbeRegistry, vote: object, param: str, said: str
) -> None:
    with pytest.raises(RequestError) as refused:
        read(registry, vote, votes=WITH_CODE)
    assert (refused.value.param, refused.value.status) == (param, 400)
    assert str(refused.value).startswith(f"{param}: ")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"tests": ["assert f(1) == 1\n" * 3_500]},
        {"tests": ["assert f(1)\n", "a = 1\n" * 10_000]},
        {"inputs": ["f(" + "1," * 32_000 + ")"]},
        {"inputs": ["f(1)"], "setup": "a = 1\n" * 10_000},
        {"inputs": ["f(1)"], "setup": "a;" * 32_000},
    ],
)
def test_much_python_does_not_hold_the_event_loop(
    registry: ProbeRegistry, fields: dict[str, Any]
) -> None:
    """It is refused before it is read, which took 1 to 3 s."""
    gc.disable()  # what thousands of tests have left is not to be gone through here
    try:
        begun_s = time.process_time()
        with pytest.raises(RequestError, match="have more than 4096 statements") as refused:
            read(registry, {"by": "code", **fields}, votes=WITH_CODE)
        assert time.process_time() - begun_s < 0.8  # 0.1 s, most of it Python's parser
    finally:
        gc.enable()
    assert refused.value.param == "q_probe.vote"


def test_as_many_calls_as_may_be_are_compared(registry: ProbeRegistry) -> None:
    """The longest texts of 256 results cross from the sandbox."""
    codes = [f"def f(): return chr(0x1F600) * {count}" for count in (300, 300, 301)]
    assert group(registry, codes, tests=["f()\n" * 256])[0].of == [0, 0, 1]


def test_a_vote_spends_no_target_kl(registry: ProbeRegistry) -> None:
    with pytest.raises(RequestError, match=r"^q_probe\.target_kl: cannot go with vote"):
        read(registry, {"by": "text"}, target_kl=1.0)


@pytest.mark.parametrize("scale", [1.0, 5.0, 1e-200, 1e8])
def test_a_mix_votes_in_units_of_one_probe(
    registry: ProbeRegistry, make_probe: Callable[..., Path], serve: Callable[..., Any], scale: Any
) -> None:
    """Else a mix of large weights would overwhelm the sizes of classes."""
    serve(registry, "other", make_probe("other"))
    mix = {"good": 3 * scale, "other": -4 * scale}
    weights = [weight for _, weight in read(registry, {"by": "text"}, probe=mix).probes]
    assert weights == pytest.approx([0.6, -0.8])
    assert [weight for _, weight in read(registry, None, probe=mix).probes] == [*mix.values()]
    assert read(registry, {"by": "text"}).probes[0][1] == 1


def test_null_is_no_vote(registry: ProbeRegistry) -> None:
    assert read(registry, None).vote is None


STEPS = (Step(16, 8), Step(32, 2))


@pytest.mark.parametrize(
    ("schedule", "expected", "is_noticed"),
    [(None, (), True), ("off", (), False), ("default", STEPS, False)],
)
def test_all_vote_unless_the_request_itself_says_otherwise(
    registry: ProbeRegistry,
    make_probe: Callable[..., Path],
    serve: Callable[..., Any],
    schedule: Any,
    expected: Any,
    *,
    is_noticed: bool,
) -> None:
    serve(registry, "quick", make_probe("quick", checkpoints=(16, 32), schedule=STEPS))
    settings = Settings(schedule="default")
    request = read(registry, {"by": "text"}, settings=settings, probe="quick", schedule=schedule)
    assert request.schedule == expected
    assert (request.notice == "no candidate is dropped early: all of them vote") == is_noticed


def test_a_vote_reads_its_candidates(registry: ProbeRegistry) -> None:
    request = read(registry, {"by": "regex", "pattern": "[Yy]es|no"})
    rerank = Rerank(request)
    classes = asyncio.run(rerank.group(["yes", "?", "oh no", "yes"]))
    assert classes == Classes([0, NO_CLASS, 1, 0], ["yes", "no"])
    assert rerank.notice is None
    assert asyncio.run(Rerank(read(registry, None)).group(["yes"])) is None


def test_no_answer_at_all_is_told_once(registry: ProbeRegistry) -> None:
    rerank = Rerank(read(registry, {"by": "numeric"}))
    rerank.keep_greedy()
    for _ in range(2):
        assert asyncio.run(rerank.group(["none", "nor here"])) == Classes([NO_CLASS] * 2, [])
    assert rerank.notice == (
        "temperature 0 leaves one candidate: the greedy one; "
        "no candidate has an answer by numeric: the scores decide"
    )


def test_a_notice_of_several_parts_is_told_once(registry: ProbeRegistry) -> None:
    """As of a vote by code, whose tests all fail and whose time is over, for each prompt."""
    rerank = Rerank(read(registry, None))
    for notice in ("one; two", "one; two", "three"):
        rerank.tell(notice)
    assert rerank.notice == "one; two; three"


def vote_among(classes: Classes, *, shown: list[CandidateReply] | None = None) -> dict[str, Any]:
    """Vote among candidates 0, 2 and 3 of four; 1 was dropped."""
    scores = [1.0, 0.5, 0.4]
    draw = choose(scores, classes.of, beta=0.0, n=2, seed=1, prompt_index=0)
    assert not isinstance(draw, Draw)
    result = make_result(
        num_tokens=[1, 2, 3, 4],
        scores=scores,
        places=[0, 2, 3],
        draw=draw,
        classes=classes,
        beta=0.0,
        shown=shown,
        rejected_at=[None, 1, None, None],
        checkpoint_scores=None,
    )
    made: dict[str, Any] = json.loads(result.model_dump_json(exclude_unset=True))
    return made


def test_a_reply_tells_classes_by_candidate() -> None:
    told = vote_among(Classes([0, 1, 1], ["7", "8"]))
    assert told["vote"] == {"classes": [0, None, 1, 1], "weights": [0.0, 1.0]}
    assert told["selected"] == [2, 0]
    assert told["weights"] == [0.0, 0.0, 1.0, 0.0]
    assert told["kl"] is None


def test_a_candidate_without_an_answer_has_no_class() -> None:
    told = vote_among(Classes([NO_CLASS, 0, NO_CLASS], ["7"]))
    assert told["vote"] == {"classes": [None, None, 0, None], "weights": [1.0]}
    assert told["selected"] == [2, 0]
    nobody = vote_among(Classes([NO_CLASS] * 3, []))
    assert nobody["vote"] == {"classes": [None] * 4, "weights": []}
    assert nobody["weights"] == [1.0, 0.0, 0.0, 0.0]


def test_answers_are_shown_with_the_candidates() -> None:
    told = vote_among(Classes([0, 1, 1], ["7", "8"]), shown=[])
    assert told["vote"]["answers"] == ["7", "8"]


def test_the_same_seed_votes_the_same_way() -> None:
    scores, classes = [0.1, 0.2, 0.3, 0.4], [0, 1, 0, 2]
    for seed in range(5):
        drawn = [
            choose(scores, classes, beta=1.0, n=3, seed=seed, prompt_index=1).selected
            for _ in range(2)
        ]
        assert drawn[0] == drawn[1]


def test_votes_are_counted_by_kind() -> None:
    registry = CollectorRegistry()
    metrics = VoteMetrics(registry)
    metrics.observe("numeric", Classes([0, NO_CLASS, NO_CLASS], ["1"]), 0.5)
    metrics.observe("text", Classes([0], ["1"]), 0.25)
    labels = {"by": "numeric"}
    assert registry.get_sample_value("qprobe_votes_total", labels) == 1
    assert registry.get_sample_value("qprobe_vote_no_answer_candidates_total", labels) == 2
    assert registry.get_sample_value("qprobe_vote_seconds_sum", labels) == 0.5


def test_code_is_run_only_where_the_server_allows_it(registry: ProbeRegistry) -> None:
    with pytest.raises(RequestError, match="--allow-code-execution") as refused:
        read(registry, CALL)
    assert (refused.value.param, refused.value.status) == ("q_probe.vote.by", 400)


def group(registry: ProbeRegistry, codes: list[str], **fields: Any) -> tuple[Classes, str | None]:
    rerank = Rerank(read(registry, {"by": "code", **fields}, votes=WITH_CODE))
    classes = asyncio.run(rerank.group(codes))
    assert classes is not None
    return classes, rerank.notice


def test_candidates_vote_by_what_their_code_does(registry: ProbeRegistry) -> None:
    codes = ["def f(x): return x * x", "no code", "```python\ndef f(x): return x ** 2\n```"]
    codes += ["def f(x): return x + x", "def f(x): return x + 2"]
    found, notice = group(registry, codes, inputs=["f(3)"])
    assert (found.of, found.answers, notice) == ([0, NO_CLASS, 0, 1, 2], ["9", "6", "5"], None)
    found, _ = group(registry, codes, tests=["assert f(2) == 4"], inputs=["f(3)"])
    assert found.of == [0, NO_CLASS, 0, 1, 2]
    found, _ = group(registry, codes, tests=["assert f(3) == 6"])
    assert found.of == [NO_CLASS] * 3 + [0, NO_CLASS]
    found, notice = group(registry, codes, tests=["assert f(3) == 7"])
    assert found.of == [0, NO_CLASS, 0, 1, 2]
    assert notice == "no candidate passes the tests: none is dropped for that"


def test_a_loop_without_end_costs_its_candidate_the_vote_alone(registry: ProbeRegistry) -> None:
    codes = ["def f(x):\n while True: pass", "def f(x): return x"]
    assert group(registry, codes, inputs=["f(3)"])[0].of == [NO_CLASS, 0]


def test_the_time_of_a_prompt_is_bounded(
    registry: ProbeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_vote, "PROMPT_S", 1.0)
    codes = [f"def f(x):\n import time\n time.sleep(60 + {i})" for i in range(12)]
    begun_s = time.monotonic()
    classes, notice = group(registry, codes, inputs=["f(3)"])
    assert time.monotonic() - begun_s < 15
    assert classes.of == [NO_CLASS] * 12
    assert notice is not None
    assert notice == (
        "the 1 s of a vote were over before 12 candidates had been run: they have no answer; "
        "no candidate has an answer by code: the scores decide"
    )


def test_prompts_that_wait_for_others_end_in_time(
    registry: ProbeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve prompts, two programs at a time: their time runs at once, not in turn."""
    monkeypatch.setattr(code_vote, "PROMPT_S", 2.0)
    codes = [f"def f(x):\n import time\n time.sleep(60 + {i})" for i in range(2)]
    reranks = [Rerank(read(registry, CALL, votes=WITH_CODE)) for _ in range(12)]

    async def vote() -> None:
        await asyncio.gather(*(each.group(codes) for each in reranks))

    begun_s = time.monotonic()
    asyncio.run(vote())
    assert time.monotonic() - begun_s < 12
    assert all("the 2 s of a vote were over" in (each.notice or "") for each in reranks)


def test_what_runs_is_ended_when_the_caller_leaves(
    registry: ProbeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 8 programs of 10 s, 2 at a time, none is left: the next is answered within seconds."""
    rerank = Rerank(read(registry, CALL, votes=WITH_CODE))
    codes = [f"def f(x):\n import time\n time.sleep(9 + {i})" for i in range(8)]

    async def leave() -> None:
        task = asyncio.create_task(rerank.group(codes))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    begun_s = time.monotonic()
    assert group(registry, ["def f(x): return x"], inputs=["f(3)"])[0].of == [0]
    assert time.monotonic() - begun_s < 6
    assert "sleep" not in caplog.text


REGEX = {"by": "regex", "pattern": "a"}


async def test_a_full_queue_is_told_before_anything_is_sampled(registry: ProbeRegistry) -> None:
    places = [Rerank(read(registry, CALL, votes=WITH_CODE)) for _ in range(3)]
    for each in places[:2]:
        await each.begin()
    with pytest.raises(RequestError) as refused:
        await places[2].begin()
    assert (refused.value.status, refused.value.param) == (503, "q_probe.vote")
    assert refused.value.headers == {"retry-after": "2"}
    for vote in ({"by": "text"}, REGEX):
        other = Rerank(read(registry, vote, votes=WITH_CODE))
        await other.begin()
        other.end()
    places[0].end()
    await places[2].begin()
    for each in places[1:]:
        each.end()


@pytest.mark.parametrize(
    ("prompts", "num_places"),
    [
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [[1, 2, 3], [4]]}, 2),
        ({"prompt": "a", "prompt_embeds": ["AAAA"]}, 2),
        ({"messages": [[{"role": "user"}], [{"role": "user"}]]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"messages": [{"role": "user"}] * 3}, 1),
    ],
)
async def test_each_prompt_takes_a_place(
    registry: ProbeRegistry, prompts: dict[str, Any], num_places: int
) -> None:
    votes = VoteReader(CodeRunner(num_workers=1, max_prompts=2))
    rerank = Rerank(read(registry, CALL, votes=votes, prompts=prompts))
    await rerank.begin()
    others = [Rerank(read(registry, CALL, votes=votes)) for _ in range(2)]
    for each in others[: 2 - num_places]:
        await each.begin()
    with pytest.raises(RequestError, match="and 2 do: try again later"):
        await others[-1].begin()
    rerank.end()
    await others[-1].begin()


@pytest.mark.parametrize(
    ("vote", "most", "name"), [(CALL, 2, "prompt"), (CALL, 2, "messages"), (REGEX, 256, "prompt")]
)
def test_more_prompts_than_may_ever_vote_are_refused(
    registry: ProbeRegistry, vote: dict[str, Any], most: int, name: str
) -> None:
    prompts = {name: [["a"]] * (most + 1)}
    with pytest.raises(RequestError, match=f"has {most + 1} prompts, {most} prompts may") as error:
        read(registry, vote, votes=WITH_CODE, prompts=prompts)
    assert (error.value.param, error.value.status) == (name, 400)


async def test_a_prompt_in_the_background_keeps_its_place(registry: ProbeRegistry) -> None:
    """It outlives its HTTP request, or begins when that has ended."""
    votes = VoteReader(CodeRunner(num_workers=1, max_prompts=1))
    long, late, other = (Rerank(read(registry, CALL, votes=votes)) for _ in range(3))
    for rerank in (long, late):
        await rerank.begin()
        if rerank is late:
            rerank.end()
        with rerank.hold():
            if rerank is long:
                rerank.end()
            with pytest.raises(RequestError, match="try again later"):
                await other.begin()
    await other.begin()


async def test_the_last_prompt_of_a_request_gives_the_places_back(
    registry: ProbeRegistry,
) -> None:
    """However it ends, and whether the request has ended before."""
    votes = VoteReader(CodeRunner(num_workers=1, max_prompts=2))
    both = Rerank(read(registry, CALL, votes=votes, prompts={"prompt": ["a", "b"]}))
    other = Rerank(read(registry, CALL, votes=votes))
    await both.begin()
    first, second = both.hold(), both.hold()
    first.__enter__()
    second.__enter__()
    both.end()
    error = ScoringError("the engine gave no scores")
    assert not first.__exit__(ScoringError, error, None)
    with pytest.raises(RequestError, match="and 2 do: try again later"):
        await other.begin()
    second.__exit__(None, None, None)
    await other.begin()


async def test_what_is_no_pattern_is_told_before_anything_is_sampled(
    registry: ProbeRegistry,
) -> None:
    """Nor does it keep its places: after as many as there are, patterns are still taken."""
    votes = VoteReader()
    rerank = Rerank(read(registry, {"by": "regex", "pattern": "("}, votes=votes))
    for _ in range(3):
        with pytest.raises(RequestError, match=r"^q_probe\.vote\.pattern: is no regular") as error:
            await rerank.begin()
        assert (error.value.status, error.value.param) == (400, "q_probe.vote.pattern")
        assert "got '('" in str(error.value)
    whole = {"prompt": ["a"] * 256}
    await Rerank(read(registry, REGEX, votes=votes, prompts=whole)).begin()


async def test_who_leaves_while_a_pattern_is_checked_keeps_no_place(
    registry: ProbeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = Event(), Event()

    def check(_: str) -> None:
        begun.set()
        end.wait(30)

    monkeypatch.setattr(search_vote, "check_pattern_apart", check)
    votes = VoteReader()
    whole = {"prompt": ["a"] * 256}
    left = asyncio.create_task(Rerank(read(registry, REGEX, votes=votes, prompts=whole)).begin())
    await asyncio.to_thread(begun.wait, 30)
    with pytest.raises(RequestError, match="and 256 do: try again later"):
        await Rerank(read(registry, REGEX, votes=votes)).begin()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    end.set()
    await Rerank(read(registry, REGEX, votes=votes, prompts=whole)).begin()


async def test_a_pattern_that_takes_long_to_compile_holds_nobody_up(
    registry: ProbeRegistry,
) -> None:
    """In this process it took .3 s of CPU time; 1 s is refused, also on a slow machine."""
    vote = {"by": "regex", "pattern": "(?i)" + "[\x02-\uffff]" * 60}
    begun_s = time.process_time()
    rerank = Rerank(read(registry, vote))
    await rerank.begin()
    assert time.process_time() - begun_s < 0.15
    rerank.end()


SLOW = {"by": "regex", "pattern": "(a*)*b"}


async def test_a_search_ends_when_its_time_is_over(
    registry: ProbeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_vote, "PROMPT_S", 0.5)
    rerank = Rerank(read(registry, SLOW))
    begun_s = time.monotonic()
    classes = await rerank.group(["a" * 40] * 16)
    assert time.monotonic() - begun_s < 3, "it would take 4 s of CPU time"
    assert classes is not None
    assert classes.of == [NO_CLASS] * 16
    assert "the 0.5 s of a vote were over before all" in (rerank.notice or "")


async def test_a_search_ends_when_the_caller_leaves(registry: ProbeRegistry) -> None:
    votes = VoteReader()
    slow = [
        asyncio.create_task(Rerank(read(registry, SLOW, votes=votes)).group(["a" * 40] * 16))
        for _ in range(4)
    ]
    await asyncio.sleep(0.3)
    for each in slow:
        each.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    begun_s = time.monotonic()
    classes = await Rerank(read(registry, REGEX, votes=votes)).group(["a", "b"])
    assert classes is not None
    assert classes.of == [0, NO_CLASS]
    assert time.monotonic() - begun_s < 3


def test_who_has_had_least_is_served_next() -> None:
    """One request has twenty jobs of 50 ms; another, who comes later, waits for one of them."""
    pool, done = FairPool(1, "test"), []
    heavy, light = Share(), Share()

    def work(name: str) -> None:
        time.sleep(0.05)
        done.append(name)

    jobs = [pool.submit(heavy, partial(work, "heavy")) for _ in range(20)]
    time.sleep(0.02)
    jobs.append(pool.submit(light, partial(work, "light")))
    for each in jobs[10:-1]:
        assert each.cancel()
    for each in (*jobs[:10], jobs[-1]):
        each.result(timeout=30)
    assert len(done) == 11
    assert done.index("light") <= 1
    with pytest.raises(ZeroDivisionError):
        pool.submit(light, lambda: 1 // 0).result(timeout=30)


class _Unsafe:
    """A sandbox that this machine does not have."""

    def __call__(self, *_: object, **__: object) -> None:
        raise SandboxError("this machine cannot run code safely: no Landlock")


def test_a_sandbox_that_fails_is_logged_without_the_code(
    registry: ProbeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(code_vote, "watch_program", _Unsafe())
    classes, notice = group(registry, ["def f(x): return 'otter'"], inputs=["f(3)"])
    assert classes.of == [NO_CLASS]
    assert notice is not None
    assert "1 candidates could not be run" in notice
    assert "no Landlock" in caplog.text
    assert "otter" not in caplog.text
