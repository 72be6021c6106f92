"""How a request's body is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe
from qprobe.probe.confidence import Confidence, Platt
from qprobe.probe.schedule import Step
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe_server.choice.request import RerankRequest, resolve, split_alias
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.schemas import ResultReply
from qprobe_server.choice.vote import VoteReader
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

RESULT = ResultReply(selected=[0], scores=[1.0], weights=[1.0], kl=0.0, beta=0.1, sampled_tokens=3)
SETTINGS = Settings()
VOTES = VoteReader()
MODELS = ("base", "lora", "odd:name")
ADAPTERS = {"lora": "sql-3", "odd:name": "other"}


def read(
    registry: ProbeRegistry,
    body: dict[str, Any],
    *,
    settings: Settings = SETTINGS,
    reads_best_of: bool = False,
) -> RerankRequest | None:
    return resolve(
        body,
        settings=settings,
        registry=registry,
        votes=VOTES,
        is_model=MODELS.__contains__,
        list_adapters=lambda: ADAPTERS,
        reads_best_of=reads_best_of,
    )


def reply_to(request: RerankRequest) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Rerank(request).reply_json())
    return made


def names(rerank: RerankRequest | None) -> list[tuple[str, float]]:
    assert rerank is not None
    return [(probe.name, weight) for probe, weight in rerank.probes]


def test_a_plain_request_is_left_alone(registry: ProbeRegistry) -> None:
    body = {"model": "base", "best_of": 3}
    assert read(registry, body, reads_best_of=True) is None
    assert body == {"model": "base", "best_of": 3}


@pytest.mark.parametrize("model", ["base", "lora"])
def test_an_alias_names_the_probe(registry: ProbeRegistry, model: str) -> None:
    body = {"model": f"{model}:kind"}
    rerank = read(registry, body)
    assert rerank is not None
    assert (names(rerank), rerank.k, rerank.beta) == ([("kind", 1.0)], 8, 0.5)
    assert not rerank.explicit
    assert body == {"model": model}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("base:kind", ("base", "kind")),
        ("odd:name:kind", ("odd:name", "kind")),
        ("base:", ("base", "")),
        ("odd:name", None),
        ("base", None),
        ("", None),
        (":kind", None),
        ("unknown:kind", None),
        (None, None),
        (3, None),
    ],
)
def test_an_alias_is_a_model_and_a_probe(model: Any, expected: tuple[str, str] | None) -> None:
    assert split_alias(model, MODELS.__contains__) == expected


@pytest.mark.parametrize("model", ["odd:name", "unknown:good", "unknown", None, 3])
def test_other_model_names_stay(registry: ProbeRegistry, model: Any) -> None:
    body = {"model": model}
    assert read(registry, body) is None
    assert body == {"model": model}


def test_precedence_is_request_then_flags_then_probe(registry: ProbeRegistry) -> None:
    flags = Settings(k=4, beta=0.25)
    by_probe = read(registry, {"model": "base", "q_probe": {"probe": "good"}})
    by_flag = read(registry, {"model": "base", "q_probe": {"probe": "good"}}, settings=flags)
    asked = {"probe": "good", "k": 2, "beta": 0}
    by_request = read(registry, {"model": "base", "q_probe": asked}, settings=flags)
    found = [(each.k, each.beta) for each in (by_probe, by_flag, by_request) if each]
    assert found == [(16, 0.1), (4, 0.25), (2, 0.0)]


def test_the_default_probe_serves_the_base_name(registry: ProbeRegistry) -> None:
    rerank = read(registry, {"model": "base"}, settings=Settings(default_probe="kind"))
    assert names(rerank) == [("kind", 1.0)]
    named = read(registry, {"model": "base:good"}, settings=Settings(default_probe="kind"))
    assert names(named) == [("good", 1.0)]


def test_a_probe_of_an_adapters_states_is_asked_with_it(
    registry: ProbeRegistry, serve: Any, make_probe: Callable[..., Path]
) -> None:
    """By the adapter's own name, whatever name it is served by; alone and in a mix."""
    serve(registry, "sql", make_probe("sql", adapter="sql-3"))
    serve(registry, "lost", make_probe("lost", adapter="gone"))
    mix = {"probe": {"good": 1.0, "sql": 0.5}}
    right: list[dict[str, Any]] = [
        {"model": "lora:sql"},
        {"model": "lora", "q_probe": {"probe": "sql"}},
        {"model": "lora", "q_probe": mix},
    ]
    for body in right:
        assert read(registry, body) is not None
    served = r"the LoRA adapter 'sql-3', served as 'lora'; --allow-model-mismatch lets"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "base:sql"}, f"is the base model, but the probe 'sql' was trained on {served}"),
        ({"q_probe": {"probe": "sql"}}, f"is the base model, but .* {served}"),
        ({"model": "base", "q_probe": mix}, f"is the base model, but .* {served}"),
        ({"model": "odd:name:sql"}, f"is the adapter 'other', but .* {served}"),
        ({"model": "lora:lost"}, "is the adapter 'sql-3', but .* 'gone', which is not served; "),
    ]
    for body, said in wrong:
        with pytest.raises(RequestError, match=f"^model: {said}") as refused:
            read(registry, body)
        assert (refused.value.param, refused.value.status) == ("model", 400)
    allowed = Settings(allow_model_mismatch=True)
    assert names(read(registry, {"model": "base:sql"}, settings=allowed)) == [("sql", 1.0)]


def test_best_of_is_k_where_openai_has_it(registry: ProbeRegistry) -> None:
    body = {"model": "base:good", "best_of": 3}
    rerank = read(registry, body, reads_best_of=True)
    assert rerank is not None
    assert rerank.k == 3
    assert body == {"model": "base"}
    elsewhere = read(registry, {"model": "base:good", "best_of": 3})
    assert elsewhere is not None
    assert elsewhere.k == 16


def test_our_object_is_taken_out(registry: ProbeRegistry) -> None:
    body = {"model": "base", "seed": 1, "q_probe": {"probe": "good", "return_candidates": True}}
    rerank = read(registry, body)
    assert rerank is not None
    assert rerank.explicit
    assert rerank.return_candidates
    assert body == {"model": "base", "seed": 1}
    assert read(registry, {"model": "base", "q_probe": None}) is None


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"q_probe": []}, "q_probe", 400),
        ({"q_probe": "good"}, "q_probe", 400),
        ({"q_probe": {}}, "q_probe.probe", 400),
        ({"q_probe": {"k": 4}}, "q_probe.probe", 400),
        ({"q_probe": {"probe": "nobody"}}, "q_probe.probe", 404),
        ({"q_probe": {"probe": 5}}, "q_probe.probe", 400),
        ({"q_probe": {"probe": {}}}, "q_probe.probe", 400),
        ({"q_probe": {"probe": {"good": "1"}}}, "q_probe.probe.good", 400),
        ({"q_probe": {"probe": {"good": float("nan")}}}, "q_probe.probe.good", 400),
        ({"q_probe": {"probe": {"good": 1e300}}}, "q_probe.probe.good", 400),
        ({"q_probe": {"probe": {"good": 0, "kind": 0.0}}}, "q_probe.probe", 400),
        ({"q_probe": {"probe": {"good": 1, "nobody": 1}}}, "q_probe.probe", 404),
        ({"q_probe": {"probe": {f"p{i}": 1 for i in range(17)}}}, "q_probe.probe", 400),
        ({"model": "base:good", "q_probe": {"probe": {"good": 1}}}, "q_probe.probe", 400),
        ({"q_probe": {"probe": "good", "target_kl": -1}}, "q_probe.target_kl", 400),
        ({"q_probe": {"probe": "good", "target_kl": 1, "beta": 1}}, "q_probe.target_kl", 400),
        (
            {"q_probe": {"probe": "good", "return_token_scores": 1}},
            "q_probe.return_token_scores",
            400,
        ),
        ({"q_probe": {"probe": "good", "temperature": 1}}, "q_probe.temperature", 400),
        ({"q_probe": {"probe": "good", "k": 0}}, "q_probe.k", 400),
        ({"q_probe": {"probe": "good", "k": 65}}, "q_probe.k", 400),
        ({"q_probe": {"probe": "good", "k": 4.0}}, "q_probe.k", 400),
        ({"q_probe": {"probe": "good", "k": True}}, "q_probe.k", 400),
        ({"q_probe": {"probe": "good", "k": "4"}}, "q_probe.k", 400),
        ({"q_probe": {"probe": "good", "beta": -0.1}}, "q_probe.beta", 400),
        ({"q_probe": {"probe": "good", "beta": float("inf")}}, "q_probe.beta", 400),
        ({"q_probe": {"probe": "good", "beta": float("nan")}}, "q_probe.beta", 400),
        ({"q_probe": {"probe": "good", "beta": 10**400}}, "q_probe.beta", 400),
        ({"q_probe": {"probe": "good", "beta": "0.1"}}, "q_probe.beta", 400),
        ({"q_probe": {"probe": "good", "return_candidates": 1}}, "q_probe.return_candidates", 400),
        ({"model": "base:nobody"}, "model", 404),
        ({"model": "base:good", "q_probe": {"probe": "kind"}}, "q_probe.probe", 400),
        ({"model": "base:good", "use_beam_search": True}, "use_beam_search", 400),
        ({"model": "base:good", "n": 17}, "n", 400),
        ({"model": "base:good", "q_probe": {"k": 2}, "n": 3}, "n", 400),
        ({"model": "base:good", "best_of": 0}, "best_of", 400),
        ({"model": "base:good", "best_of": 2, "q_probe": {"k": 3}}, "best_of", 400),
        ({"model": "base:good", "best_of": 2, "n": 3}, "best_of", 400),
        ({"model": "base:good", "best_of": 1, "n": 2}, "best_of", 400),
        ({"model": "base:good", "q_probe": {"k": 2}, "n": "3"}, "n", 400),
        ({"model": "base:good", "use_beam_search": "true"}, "use_beam_search", 400),
        ({"q_prob": {"probe": "good"}}, "q_prob", 400),
        ({"model": "base:good", "qprobe": {"k": 2}}, "qprobe", 400),
        ({"model": "base:good", "Q_Probes": {}}, "Q_Probes", 400),
        ({"model": "base:good", "q-probe": None}, "q-probe", 400),
        ({"model": "base:good", "k": 4}, "k", 400),
        ({"model": "base", "probe": "good"}, "probe", 400),
        ({"model": "base:good", "beta": 0}, "beta", 400),
        ({"model": "base:good", "return_token_scores": True}, "return_token_scores", 400),
    ],
)
def test_bad_requests_name_the_field(
    registry: ProbeRegistry, body: dict[str, Any], param: str, status: int
) -> None:
    with pytest.raises(RequestError) as refused:
        read(registry, {"model": "base", **body}, reads_best_of=True)
    assert refused.value.param == param
    assert refused.value.status == status
    assert param in str(refused.value)
    error = refused.value.body()["error"]
    assert error == {
        "message": str(refused.value),
        "type": "NotFoundError" if status == 404 else "BadRequestError",
        "param": param,
        "code": status,
    }


def test_a_long_bad_value_is_not_echoed_whole(registry: ProbeRegistry) -> None:
    with pytest.raises(RequestError) as refused:
        read(registry, {"model": "base", "q_probe": {"probe": "good", "beta": "x" * 10_000}})
    assert len(str(refused.value)) < 300
    for body in ({"q_probe": "x" * 10_000}, {"q_probe": {"x" * 10_000: 1}}):
        with pytest.raises(RequestError) as refused:
            read(registry, {"model": "base", **body})
        assert len(str(refused.value.body())) < 500


def test_a_prompt_without_a_result_keeps_its_place(registry: ProbeRegistry) -> None:
    rerank = read(registry, {"model": "base:good"})
    assert rerank is not None
    state = Rerank(rerank)
    assert [state.next_prompt() for _ in range(3)] == [0, 1, 2]
    state.add(2, RESULT)
    told = json.loads(state.reply_json())["results"]
    assert told == [None, None, RESULT.model_dump(exclude_unset=True)]


STEPS = (Step(16, 8), Step(32, 2))
LIST = [{"tokens": 16, "keep": 8}, {"tokens": 32, "keep": 2}]


@pytest.fixture
def with_heads(
    registry: ProbeRegistry, make_probe: Callable[..., Path], serve: Callable[..., Any]
) -> ProbeRegistry:
    """Also ``quick``, which recommends a schedule, and ``able``, which has heads only."""
    checkpoints = (16, 32, 64)
    serve(registry, "quick", make_probe("quick", checkpoints=checkpoints, schedule=STEPS))
    serve(registry, "able", make_probe("able", checkpoints=checkpoints))
    return registry


@pytest.mark.parametrize(
    ("default", "probe", "asked", "expected", "noticed"),
    [
        ((), "quick", None, (), False),
        ((), "quick", "off", (), False),
        ((), "quick", [], (), False),
        ((), "quick", "default", STEPS, False),
        ((), "able", LIST, STEPS, False),
        ((), {"able": 1.0, "quick": 2.0}, LIST, STEPS, False),
        ("default", "quick", None, STEPS, False),
        ("default", "quick", "off", (), False),
        ("default", "able", None, (), False),
        ("default", "good", None, (), False),
        ("default", {"able": 1.0, "quick": 2.0}, None, (), False),
        (STEPS, "able", None, STEPS, False),
        (STEPS, "able", [{"tokens": 64, "keep": 1}], (Step(64, 1),), False),
        (STEPS, "good", None, (), True),
        (STEPS, {"able": 1.0, "good": 2.0}, None, (), True),
    ],
)
def test_which_schedule_is_followed(
    with_heads: ProbeRegistry, default: Any, probe: Any, asked: Any, expected: Any, *, noticed: bool
) -> None:
    fields = {"probe": probe} if asked is None else {"probe": probe, "schedule": asked}
    body = {"model": "base", "q_probe": fields}
    rerank = read(with_heads, body, settings=Settings(schedule=default))
    assert rerank is not None
    assert rerank.schedule == expected
    assert (rerank.notice is not None) == noticed
    assert reply_to(rerank).get("schedule", []) == [
        {"tokens": step.tokens, "keep": step.keep} for step in expected
    ]


@pytest.mark.parametrize(
    ("probe", "schedule", "param"),
    [
        ("quick", "often", "q_probe.schedule"),
        ("quick", {"tokens": 16, "keep": 2}, "q_probe.schedule"),
        ("quick", 5, "q_probe.schedule"),
        ("quick", [16], "q_probe.schedule.0"),
        ("quick", [{"tokens": 16}], "q_probe.schedule.0.keep"),
        ("quick", [{"tokens": 16, "keep": 2, "drop": 1}], "q_probe.schedule.0.drop"),
        ("quick", [{"tokens": 16, "keep": 0}], "q_probe.schedule.0.keep"),
        ("quick", [{"tokens": "16", "keep": 1}], "q_probe.schedule.0.tokens"),
        ("quick", [*LIST, {"tokens": 32, "keep": 1}], "q_probe.schedule.2.tokens"),
        ("quick", [*LIST, {"tokens": 64, "keep": 3}], "q_probe.schedule.2.keep"),
        ("quick", [{"tokens": 16 + i, "keep": 1} for i in range(17)], "q_probe.schedule"),
        ("quick", [*LIST, {"tokens": 48, "keep": 1}], "q_probe.schedule.2.tokens"),
        ("good", LIST, "q_probe.schedule.0.tokens"),
        ({"quick": 1, "good": 1}, LIST, "q_probe.schedule.0.tokens"),
        ("able", "default", "q_probe.schedule"),
        ({"quick": 1, "able": 1}, "default", "q_probe.schedule"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    with_heads: ProbeRegistry, probe: Any, schedule: Any, param: str
) -> None:
    body = {"model": "base", "q_probe": {"probe": probe, "schedule": schedule}}
    with pytest.raises(RequestError) as refused:
        read(with_heads, body)
    assert (refused.value.param, refused.value.status) == (param, 400)
    assert str(refused.value).startswith(f"{param}: ")


def test_a_mix_and_a_schedule_have_a_limit_together(
    registry: ProbeRegistry, make_probe: Callable[..., Path], serve: Callable[..., Any]
) -> None:
    tokens = tuple(range(1, 17))
    for index in range(4):
        serve(registry, f"p{index}", make_probe(f"p{index}", checkpoints=tokens))
    mix = {f"p{index}": 1.0 for index in range(4)}
    steps = [{"tokens": each, "keep": 1} for each in tokens]
    body = {"model": "base", "q_probe": {"probe": mix, "schedule": steps[:15]}}
    assert read(registry, body) is not None
    with pytest.raises(RequestError, match=r"q_probe\.schedule: 4 probes and 16 checkpoints"):
        read(registry, {"model": "base", "q_probe": {"probe": mix, "schedule": steps}})


def test_a_target_kl_goes_before_the_servers_schedule(with_heads: ProbeRegistry) -> None:
    asked: dict[str, Any] = {"probe": "quick", "target_kl": 1.0}
    settings = Settings(schedule="default")
    rerank = read(with_heads, {"model": "base", "q_probe": dict(asked)}, settings=settings)
    assert rerank is not None
    assert (rerank.schedule, rerank.target_kl) == ((), 1.0)
    assert rerank.notice is not None
    with pytest.raises(RequestError, match=r"^q_probe\.schedule: cannot go with target_kl"):
        read(with_heads, {"model": "base", "q_probe": {**asked, "schedule": LIST}})


def test_a_mix_takes_the_largest_recommendations(registry: ProbeRegistry) -> None:
    rerank = read(registry, {"model": "base", "q_probe": {"probe": {"kind": -1, "good": 0.5}}})
    assert rerank is not None
    assert (names(rerank), rerank.k, rerank.beta) == ([("kind", -1.0), ("good", 0.5)], 16, 0.5)
    reply = reply_to(rerank)
    assert reply["probe"] == {"kind": -1.0, "good": 0.5}
    assert set(reply["version"]) == {"kind", "good"}


def test_a_target_kl_stands_instead_of_beta(registry: ProbeRegistry) -> None:
    asked = {"probe": "good", "target_kl": 1}
    rerank = read(registry, {"model": "base", "q_probe": asked}, settings=Settings(beta=2.0))
    assert rerank is not None
    assert (rerank.beta, rerank.target_kl) == (None, 1.0)
    assert "beta" not in reply_to(rerank)
    assert reply_to(rerank)["target_kl"] == 1.0


def test_the_reply_names_the_version_that_the_request_began_with(
    registry: ProbeRegistry, make_probe: Callable[..., Path], serve: Callable[..., Any]
) -> None:
    rerank = read(registry, {"model": "base:good"})
    assert rerank is not None
    (held, _) = rerank.probes[0]
    serve(registry, "good", make_probe("other", beta=0.2))
    assert reply_to(rerank)["version"] == held.version
    later = read(registry, {"model": "base:good"})
    assert later is not None
    assert reply_to(later)["version"] != held.version


def test_terms_count_towards_the_limit(
    registry: ProbeRegistry, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """Two probes of 20 readings and 2 gates each, and with a head of 10 readings."""
    ones = np.ones(4, np.float32)

    def read_windows(count: int) -> tuple[StateTerm, ...]:
        return tuple(StateTerm(Reading(3, "mean", each), ones) for each in range(1, count + 1))

    gates = tuple(GateTerm(each, (), ones, ones) for each in (1, 2))
    info = ProbeInfo(
        base_model="org/model",
        hidden_size=4,
        num_layers=6,
        objective="ce",
        k=4,
        beta=0.1,
        checkpoints=(16,),
    )
    probe = Probe(info, Terms(read_windows(20), gates), {16: Terms(read_windows(10))})
    save_probe(probe, tmp_path / "wide")
    for name in ("one", "two", "three"):
        serve(registry, name, tmp_path / "wide")
    two = {"one": 1.0, "two": 1.0}
    body = {"model": "base", "q_probe": {"probe": two}}
    assert read(registry, body) is not None
    body = {"model": "base", "q_probe": {"probe": {**two, "three": 1.0}}}
    with pytest.raises(RequestError, match="3 probes score each token 72 times") as refused:
        read(registry, body)
    assert refused.value.param == "q_probe.probe"
    schedule = [{"tokens": 16, "keep": 1}]
    body = {"model": "base", "q_probe": {"probe": two, "schedule": schedule}}
    with pytest.raises(RequestError, match="1 checkpoints score each token 68 times") as refused:
        read(registry, body)
    assert refused.value.param == "q_probe.schedule"


def test_a_confidences_terms_count_towards_the_limit_with_a_schedule(
    registry: ProbeRegistry, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """20 readings, 10 of the head, and 34 or 35 of the confidence."""
    ones = np.ones(4, np.float32)

    def read_windows(count: int) -> Terms:
        return Terms(
            tuple(StateTerm(Reading(3, "mean", each), ones) for each in range(1, count + 1))
        )

    info = ProbeInfo(
        base_model="org/model",
        hidden_size=4,
        num_layers=6,
        objective="ce",
        k=4,
        beta=0.1,
        checkpoints=(16,),
    )
    for name, count in (("fits", 34), ("sure", 35)):
        confidence = Confidence(Platt(1.0, 0.0), read_windows(count))
        probe = Probe(info, read_windows(20), {16: read_windows(10)}, confidence)
        save_probe(probe, tmp_path / name)
        serve(registry, name, tmp_path / name)
    schedule = [{"tokens": 16, "keep": 1}]
    body = {"model": "base", "q_probe": {"probe": "fits", "schedule": schedule}}
    assert read(registry, body) is not None
    body = {"model": "base", "q_probe": {"probe": "sure", "schedule": schedule}}
    with pytest.raises(RequestError, match="1 checkpoints score each token 65 times") as refused:
        read(registry, body)
    assert refused.value.param == "q_probe.schedule"


def test_a_mix_tells_no_confidence(
    registry: ProbeRegistry, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """Not even of one probe: its weight changes the scores."""
    info = ProbeInfo(
        base_model="org/model", hidden_size=4, num_layers=6, objective="ce", k=4, beta=0.1
    )
    terms = Terms(numbers={"length": 1.0})
    save_probe(Probe(info, terms, confidence=Confidence(Platt(1.0, 0.0))), tmp_path / "sure")
    serve(registry, "sure", tmp_path / "sure")
    for asked, is_told in (("sure", True), ({"sure": 2.0}, False), ("good", False)):
        request = read(registry, {"model": "base", "q_probe": {"probe": asked}})
        assert request is not None
        assert (request.confidence is not None) == is_told
