"""Probes by name, whether they fit the model, and the flags."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qprobe import Probe, ProbeFileError, ProbeInfo, Reading, Terms, load_probe, save_probe
from qprobe.probe.confidence import Confidence, Platt
from qprobe.probe.probe import Endpoint
from qprobe.probe.reading import EMBEDDING
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe_server.errors import StartupError
from qprobe_server.library.fit import (
    ModelFacts,
    check_exposed,
    check_fit,
    check_layers,
    find_inner_layers,
)
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe, read_probe
from qprobe_server.settings import Settings

MakeProbe = Callable[..., Path]
Serve = Callable[[ProbeRegistry, str, Path], ServedProbe]
MODEL = ModelFacts(
    name="org/model",
    architecture="ModelForCausalLM",
    hidden_size=4,
    num_layers=6,
    has_inner_layers=True,
    logprobs_mode="raw_logprobs",
)


def test_layers_are_those_of_the_probes(make_probe: MakeProbe) -> None:
    layers = (3, "final", 1, 3)
    probes = [load_probe(make_probe(f"p{i}", layer=layer)) for i, layer in enumerate(layers)]
    assert find_inner_layers(probes) == (1, 3)


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a/b", "../a", "..", "a" * 65, "é", "a:b", "a\n", "a\0", "%2e%2e"]
)
def test_bad_names_are_refused(make_probe: MakeProbe, name: str) -> None:
    data = make_probe("x").read_bytes()
    with pytest.raises(ProbeFileError, match="a name is") as refused:
        read_probe(name, data)
    assert refused.value.field == "name"


def reserve(probe: Probe) -> ServedProbe:
    return ProbeRegistry().reserve(LoadedProbe("p", "version", 0, probe))


def test_every_sum_has_rows_of_its_own() -> None:
    """One a reading and two a gate; numbers need none."""
    ones = np.ones(4, np.float32)
    state, gate = StateTerm(Reading(3, "mean"), ones), GateTerm(1, (), ones, ones)
    score = Terms((state, StateTerm(Reading("final", "last"), ones)), (gate,), {"cut": 1.0}, 0.5)
    heads = {4: Terms((state,)), 8: Terms(numbers={"length": 1.0}, bias=0.5)}
    own = Terms(gates=(gate,), bias=0.5)
    info = ProbeInfo(
        base_model="org/model",
        hidden_size=4,
        num_layers=6,
        objective="ce",
        k=4,
        beta=0.1,
        checkpoints=(4, 8),
    )
    served = reserve(Probe(info, score, heads, Confidence(Platt(1.0, 0.0), own)))
    assert served.confidence is not None
    assert served.confidence.own is not None
    sums = [served.score, served.confidence.own, *served.heads.values()]
    assert served.sums == sums
    assert [len(each.rows) for each in sums] == [4, 2, 1, 0]
    assert sorted(row for each in sums for row in each.rows) == list(range(7))
    # A bias goes with the first reading's row, else it is added.
    assert [each.bias for each in sums] == [0.0, 0.5, 0.0, 0.5]
    assert reserve(Probe(replace(info, checkpoints=()), score)).confidence is None


def test_a_probe_of_very_many_terms_is_refused(tmp_path: Path) -> None:
    info = ProbeInfo(base_model="m", hidden_size=1, num_layers=6, objective="ce", k=4, beta=0.1)
    one = np.ones(1, np.float32)
    for count in (64, 65):
        states = [StateTerm(Reading(3, "mean", each), one) for each in range(1, count + 1)]
        save_probe(Probe(info, Terms(tuple(states))), tmp_path / "many")
        if count == 64:
            read_probe("many", (tmp_path / "many").read_bytes())
    with pytest.raises(ProbeFileError, match="score each token 65 times, more than a request's 64"):
        read_probe("many", (tmp_path / "many").read_bytes())


def test_an_index_is_used_again_only_when_nothing_holds_its_version(
    make_probe: MakeProbe, serve: Serve
) -> None:
    registry = ProbeRegistry()
    serve(registry, "a", make_probe("a"))
    running = registry.get("a")  # as a request holds it
    assert running is not None
    second = serve(registry, "a", make_probe("a", beta=0.2))
    assert registry.get("a") is second
    third = serve(registry, "b", make_probe("b"))
    assert len({*running.score.rows, *second.score.rows, *third.score.rows}) == 3
    freed = running.score.rows
    del running
    gc.collect()
    assert serve(registry, "c", make_probe("c")).score.rows == freed
    registry.remove("b")
    freed = third.score.rows
    del third
    gc.collect()
    assert serve(registry, "d", make_probe("d")).score.rows == freed
    assert [each.name for each in registry.probes()] == ["a", "c", "d"]


def test_a_finalizer_calls_nobody(make_probe: MakeProbe, serve: Serve) -> None:
    """It may run under the very lock that a listener would wait for."""
    registry, told = ProbeRegistry(), list[str]()
    registry.when_forgotten(told.append)
    held: ServedProbe | None = serve(registry, "a", make_probe("a"))
    assert held is not None
    registry.remove("a")
    held = None
    gc.collect()
    assert told == []
    assert registry.get("b") is None
    assert told == ["a"]


def test_requests_are_counted_by_name(
    registry: ProbeRegistry, make_probe: MakeProbe, serve: Serve
) -> None:
    """All versions together; not one that was under way when its probe was deleted."""
    good = registry.get("good")
    assert good is not None
    for _ in range(3):
        registry.count_request(good)
    assert (registry.num_requests("good"), registry.num_requests("kind")) == (3, 0)
    other = serve(registry, "good", make_probe("other"))
    for each in (good, other):
        registry.count_request(each)
    assert registry.num_requests("good") == 5
    registry.remove("good")
    registry.count_request(other)
    registry.publish(other)
    assert registry.num_requests("good") == 0


def test_ten_thousand_names_make_a_short_message(make_probe: MakeProbe) -> None:
    registry = ProbeRegistry()
    loaded = read_probe("x", make_probe("x").read_bytes())
    for number in range(10_000):
        registry.publish(registry.reserve(replace(loaded, name=f"p{number}")))
    assert len(registry) == 10_000
    assert len(registry.describe_names()) < 300
    assert "9980 more" in registry.describe_names()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"hidden_size": 8}, "hidden_size", "is 4, that of 'org/model' is 8"),
        ({"num_layers": 7}, "num_layers", "is 6, that of 'org/model' is 7"),
        ({"has_inner_layers": False}, "terms", "read layer 3.*ModelForCausalLM gives the 'final'"),
        ({"name": "org/other"}, "base_model", "is 'org/model'.*--allow-model-mismatch"),
    ],
)
def test_probes_that_do_not_fit(
    make_probe: MakeProbe, change: dict[str, Any], field: str, message: str
) -> None:
    probe = load_probe(make_probe("good"))
    with pytest.raises(ProbeFileError, match=message) as refused:
        check_fit(probe, replace(MODEL, **change), allow_model_mismatch=False)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_a_probe_of_an_adapter_wants_a_server_that_takes_adapters(make_probe: MakeProbe) -> None:
    probe = load_probe(make_probe("a", adapter="sql-3"))
    with pytest.raises(ProbeFileError, match="--enable-lora") as refused:
        check_fit(probe, MODEL, allow_model_mismatch=False)
    assert refused.value.field == "adapter"
    check_fit(probe, MODEL, allow_model_mismatch=True)
    check_fit(probe, replace(MODEL, has_adapters=True), allow_model_mismatch=False)


def test_probes_of_an_embeddings_endpoint_are_the_proxys() -> None:
    info = ProbeInfo(
        base_model="embedder",
        hidden_size=4,
        num_layers=1,
        objective="ce",
        k=4,
        beta=0.1,
        endpoint=Endpoint(template="{completion}", normalize=True),
    )
    for terms in (Terms.linear(EMBEDDING, np.ones(4)), Terms(numbers={"length": 1.0})):
        with pytest.raises(ProbeFileError, match="qprobe proxy serves it") as refused:
            check_fit(Probe(info, terms), MODEL, allow_model_mismatch=True)
        assert refused.value.field == "endpoint"


@pytest.mark.parametrize("place", ["terms", "heads", "confidence"])
def test_log_probabilities_must_be_those_of_the_model(place: str) -> None:
    """Wherever they are read; other numbers do not mind."""
    with_states = Terms.linear(Reading(3, "mean"), np.ones(4))
    for names in (["cut", "length"], ["total_logprob"]):
        read = Terms(numbers=dict.fromkeys(names, 1.0))
        info = ProbeInfo(
            base_model="org/model",
            hidden_size=4,
            num_layers=6,
            objective="ce",
            k=4,
            beta=0.1,
            checkpoints=(4,) if place == "heads" else (),
        )
        probe = Probe(
            info,
            read if place == "terms" else with_states,
            {4: read} if place == "heads" else {},
            Confidence(Platt(1.0, 0.0), read) if place == "confidence" else None,
        )
        check_fit(probe, MODEL, allow_model_mismatch=False)
        processed = replace(MODEL, logprobs_mode="processed_logprobs")
        if names == ["total_logprob"]:
            with pytest.raises(ProbeFileError, match="--logprobs-mode must be 'raw_logprobs'"):
                check_fit(probe, processed, allow_model_mismatch=False)
        else:
            check_fit(probe, processed, allow_model_mismatch=False)


def test_probes_that_fit_pass(make_probe: MakeProbe) -> None:
    probe = load_probe(make_probe("end", layer="final"))
    for model in (MODEL, replace(MODEL, has_inner_layers=False)):
        check_fit(probe, model, allow_model_mismatch=False)
    check_fit(probe, replace(MODEL, name="/models/model"), allow_model_mismatch=False)
    check_fit(probe, replace(MODEL, name="other"), allow_model_mismatch=True)


def test_layers_that_are_not_exposed(make_probe: MakeProbe) -> None:
    probe = load_probe(make_probe("good"))
    check_exposed(probe, (1, 3))
    check_exposed(load_probe(make_probe("end", layer="final")), ())
    with pytest.raises(ProbeFileError, match="--probe-layers 1,3,5,final"):
        check_exposed(probe, (1, 5))
    check_layers((1, 5), MODEL)
    check_layers((), replace(MODEL, has_inner_layers=False))
    with pytest.raises(StartupError, match=r"--probe-layers: must be from 1 to 5.*got 6"):
        check_layers((1, 6), MODEL)
    with pytest.raises(StartupError, match=r"--probe-layers.*'final' layer only"):
        check_layers((1,), replace(MODEL, has_inner_layers=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_k": 0}, "--max-k"),
        ({"max_body_mib": 0}, "--max-body-mib must be at least 1, got 0"),
        ({"k": 0}, "--k"),
        ({"k": 65}, "--k"),
        ({"beta": -1.0}, "--beta"),
        ({"beta": float("nan")}, "--beta"),
        ({"default_probe": "nobody"}, "--default-probe 'nobody'.*good, kind"),
    ],
)
def test_bad_settings_name_the_flag(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Settings(**change).check(["good", "kind"])


def test_a_set_k_overrules_what_a_probe_recommends(make_probe: MakeProbe) -> None:
    probe = load_probe(make_probe("good"))
    Settings(k=8, max_k=8).check_probe(probe.info)
    with pytest.raises(ProbeFileError, match="recommends k=16, more than --max-k 8"):
        Settings(max_k=8).check_probe(probe.info)


def test_the_admin_key_is_not_shown() -> None:
    assert "secret" not in repr(Settings(admin_api_key="secret"))
