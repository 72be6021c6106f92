"""Loading probes at start-up, and whether they fit the model and the flags."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qprobe_server.errors import StartupError
from qprobe_server.registry import ModelFacts, ProbeRegistry
from qprobe_server.settings import Settings

MakeProbe = Callable[..., Path]
MODEL = ModelFacts(
    name="org/model",
    architecture="ModelForCausalLM",
    hidden_size=4,
    num_layers=6,
    has_inner_layers=True,
)


def test_layers_are_those_of_the_probes(registry: ProbeRegistry, make_probe: MakeProbe) -> None:
    registry.load("early", make_probe("early", layer=1))
    registry.load("same", make_probe("same", layer=3))
    assert registry.inner_layers() == (1, 3)
    assert [each.index for each in registry.probes()] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "../a", "a" * 65, "é", "a:b", "a\n"])
def test_bad_names_are_refused(registry: ProbeRegistry, make_probe: MakeProbe, name: str) -> None:
    with pytest.raises(StartupError, match="a name is"):
        registry.load(name, make_probe("x"))


def test_bad_probes_are_refused(registry: ProbeRegistry, make_probe: MakeProbe) -> None:
    with pytest.raises(StartupError, match="given twice"):
        registry.load("good", make_probe("x"))
    with pytest.raises(StartupError, match=r"'far'.*nowhere"):
        registry.load("far", Path("nowhere"))
    with pytest.raises(StartupError, match=r"'deep'.*2 layers"):
        registry.load("deep", make_probe("deep", num_layers_of_probe=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 8}, "'good'.*hidden_size is 4, the model's is 8"),
        ({"num_layers": 7}, "'good'.*num_layers is 6, the model's is 7"),
        ({"has_inner_layers": False}, "'good'.*layer 3.*ModelForCausalLM gives the 'final'"),
        ({"name": "org/other"}, "'good'.*trained on 'org/model'.*--allow-model-mismatch"),
    ],
)
def test_probes_that_do_not_fit_stop_the_start(
    registry: ProbeRegistry, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message) as refused:
        registry.check_fit(replace(MODEL, **change), allow_model_mismatch=False)
    assert "\n" not in str(refused.value)


def test_probes_that_fit_pass(make_probe: MakeProbe) -> None:
    registry = ProbeRegistry()
    registry.load("end", make_probe("end", layer="final"))
    registry.check_fit(MODEL, allow_model_mismatch=False)
    registry.check_fit(replace(MODEL, has_inner_layers=False), allow_model_mismatch=False)
    registry.check_fit(replace(MODEL, name="/models/model"), allow_model_mismatch=False)
    registry.check_fit(replace(MODEL, name="other"), allow_model_mismatch=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_k": 0}, "--max-k"),
        ({"k": 0}, "--k"),
        ({"k": 65}, "--k"),
        ({"beta": -1.0}, "--beta"),
        ({"beta": float("nan")}, "--beta"),
        ({"default_probe": "nobody"}, "--default-probe 'nobody'.*good, kind"),
        ({"max_k": 8}, "'good' recommends k=16"),
    ],
)
def test_bad_settings_name_the_flag(
    registry: ProbeRegistry, change: dict[str, Any], message: str
) -> None:
    fields = {"default_probe": None, "k": None, "beta": None, "max_k": 64, "keep_alive_s": 10.0}
    with pytest.raises(StartupError, match=message):
        Settings(**{**fields, **change}).check(registry)


def test_a_set_k_overrules_what_a_probe_recommends(registry: ProbeRegistry) -> None:
    settings = Settings(default_probe="good", k=8, beta=0.0, max_k=8, keep_alive_s=10)
    settings.check(registry)
    with pytest.raises(StartupError, match="recommends k=16"):
        replace(settings, k=None).check(registry)
