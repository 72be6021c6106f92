"""What the default model is served with, and what is left where the user has chosen."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from qprobe_server.commands import arguments, serve

PLAIN = serve.name_given(arguments.parse(["serve"]))


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the model itself."""
    monkeypatch.setattr(serve, "choose_default_model", lambda: "folder of the model")


def prepare(**given: Any) -> argparse.Namespace:
    """Return the arguments of a server of the default model; vLLM's defaults but for ``given``."""
    defaults: dict[str, Any] = {
        "served_model_name": None,
        "probe": [],
        "schedule": None,
        "enable_auto_tool_choice": False,
        "tool_call_parser": None,
        "structured_outputs_config": object(),
    }
    args = argparse.Namespace(**{**defaults, **given}, given=frozenset(given))
    serve.prepare_default_server(args)
    return args


def test_the_default_model_comes_with_probes_their_schedule_and_tools() -> None:
    args = prepare()
    assert args.model_tag == "folder of the model"
    assert args.served_model_name == ["smollm2-135m"]
    probes = dict(each.split("=", 1) for each in args.probe)
    assert set(probes) == {"python", "concise"}
    assert all(Path(path).is_file() for path in probes.values())
    assert args.schedule == "default"
    assert args.enable_auto_tool_choice
    assert args.tool_call_parser == "hermes"
    assert args.compact_json


def test_what_the_user_has_chosen_is_left() -> None:
    args = prepare(
        served_model_name=["mine"],
        schedule=(),
        tool_call_parser="pythonic",
        structured_outputs_config=object(),
    )
    assert args.served_model_name == ["mine"]
    assert args.schedule == ()
    assert not args.enable_auto_tool_choice
    assert args.tool_call_parser == "pythonic"
    assert not args.compact_json


def test_probes_of_the_user_bring_no_schedule() -> None:
    args = prepare(probe=["mine=file"])
    assert args.probe == ["mine=file"]
    assert args.schedule is None


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        ([], set()),
        (["--no-enforce-eager", "--schedule", "off"], {"enforce_eager", "schedule"}),
        (["-O1", "--gpu-memory-utilization", "0.92"], {"optimization_level", "memory"}),
        (["--uvicorn-log-level", "info", "-cc.mode=3"], {"uvicorn_log_level", "compilation"}),
        (["--structured-outputs-config.backend", "guidance"], {"structured_outputs_config"}),
    ],
)
def test_which_flags_were_given(flags: list[str], given: set[str]) -> None:
    """Also those that were given their default."""
    longer = {"memory": "gpu_memory_utilization", "compilation": "compilation_config"}
    new = serve.name_given(arguments.parse(["serve", *flags])) - PLAIN
    assert new == {longer.get(name, name) for name in given}
