"""What a request may ask of a vote, and what the reply tells of it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from qprobe import Draw
from qprobe.probe.schedule import Step
from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.equal import Classes
from qprobe_server.choice.draw import choose
from qprobe_server.choice.request import RerankRequest, resolve
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.result import make_result
from qprobe_server.choice.schemas import CandidateReply
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

VOTES = VoteReader()


def read(
    registry: ProbeRegistry, vote: object, *, settings: Settings | None = None, **fields: Any
) -> RerankRequest:
    body = {"model": "base", "q_probe": {"probe": "good", **fields, "vote": vote}}
    request = resolve(
        body,
        settings=settings or Settings(),
        registry=registry,
        votes=VOTES,
        is_model="base".__eq__,
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
        ({"by": "text", "beta": 1}, "q_probe.vote.beta", "the fields are by, pattern"),
        ({"by": "text", "pattern": "a"}, "q_probe.vote.pattern", "belongs to a vote by 'regex'"),
        ({"by": "regex"}, "q_probe.vote.pattern", "is missing"),
        ({"by": "regex", "pattern": None}, "q_probe.vote.pattern", "is missing"),
        ({"by": "regex", "pattern": 1}, "q_probe.vote.pattern", "valid string"),
        ({"by": "regex", "pattern": "("}, "q_probe.vote.pattern", "is no regular expression"),
        ({"by": "regex", "pattern": "a" * 1001}, "q_probe.vote.pattern", "1000 characters"),
    ],
)
def test_a_vote_that_is_none_names_its_field(
    registry: ProbeRegistry, vote: object, param: str, said: str
) -> None:
    with pytest.raises(RequestError) as refused:
        read(registry, vote)
    assert (refused.value.param, refused.value.status) == (param, 400)
    assert str(refused.value).startswith(f"{param}: ")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_vote_spends_no_target_kl(registry: ProbeRegistry) -> None:
    with pytest.raises(RequestError, match=r"^q_probe\.target_kl: cannot go with vote"):
        read(registry, {"by": "text"}, target_kl=1.0)


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
    metrics = RerankMetrics(registry)
    metrics.observe_vote("numeric", Classes([0, NO_CLASS, NO_CLASS], ["1"]), 0.5)
    metrics.observe_vote("text", Classes([0], ["1"]), 0.25)
    labels = {"by": "numeric"}
    assert registry.get_sample_value("qprobe_votes_total", labels) == 1
    assert registry.get_sample_value("qprobe_vote_no_answer_candidates_total", labels) == 2
    assert registry.get_sample_value("qprobe_vote_seconds_sum", labels) == 0.5
