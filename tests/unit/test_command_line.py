"""What ``qprobe`` says at once: help, mistyped flags, and how vLLM's flags are taken by name."""

import json
import re
import sys
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprobe_server import cli
from qprobe_server.commands import arguments, train
from qprobe_server.commands.parser import normalize

COMMANDS = ("serve", "collect", "sweep", "train", "eval", "schedule")
FLAGS: dict[str, list[dict[str, Any]]] = json.loads(
    (resources.files("qprobe_server.vllm_backend") / "flags.json").read_text()
)
Run = Callable[..., Any]
COLLECT = ("collect", __file__, "-o", "out")


@pytest.mark.parametrize("args", [["--help"], *([each, "--help"] for each in COMMANDS)])
def test_help_imports_nothing_heavy(run_qprobe: Run, args: list[str]) -> None:
    ran = run_qprobe(*args)
    assert ran.status == 0
    assert ran.heavy == set()
    prefix = " ".join(["usage: qprobe", *args[:-1]])
    assert ran.out.startswith(prefix)
    if len(args) == 1:
        assert all(re.search(rf"^ +{each} ", ran.out, re.MULTILINE) for each in COMMANDS)


def test_version(run_qprobe: Run) -> None:
    ran = run_qprobe("--version")
    assert (ran.status, ran.out.strip(), ran.heavy) == (0, version("qprobe"), set())


@pytest.mark.parametrize("command", ["serve", "collect"])
def test_help_shows_our_flags_and_the_way_to_vllms(run_qprobe: Run, command: str) -> None:
    ours = {"serve": "--default-probe NAME", "collect": "--reward REWARD"}[command]
    shown = run_qprobe(command, "--help").out
    assert ours in shown
    assert "--help=all" in shown
    assert "--all2all-backend" not in shown
    assert run_qprobe(command, "--help=qprobe").out == shown


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["serve", "--porrt", "80"], "--port"),
        (["serve", "--defualt-probe=x"], "--default-probe"),
        (["serve", "org/model", "--max_modle_len", "4"], "--max-model-len"),
        (["serve", "--no-enforce-eagr"], "--no-enforce-eager"),
        (["serve", "--compilaton-config.mode", "3"], "--compilation-config"),
        (["collect", "--rewrad", "tests"], "--reward"),  # beside what is missing
        ([*COLLECT, "--tensor-paralel-size", "2"], "--tensor-parallel-size"),
        (["train", "data", "--layr", "3"], "--layer"),
        (["sweep", "data", "-o", "x", "--test_fraction", ".5"], "--test-fraction"),
    ],
)
def test_a_mistyped_flag_is_told_what_it_may_mean(
    run_qprobe: Run, args: list[str], meant: str
) -> None:
    ran = run_qprobe(*args)
    assert ran.status == 2
    assert ran.err.endswith(f"; did you mean {meant}?\n")
    assert ran.err.startswith(f"usage: qprobe {args[0]} ")
    assert ran.heavy == set()


def test_a_flag_like_no_other_is_refused_too(run_qprobe: Run) -> None:
    ran = run_qprobe("serve", "--zzzzzz")
    assert (ran.status, ran.heavy) == (2, set())
    assert ran.err.endswith("unrecognized argument: --zzzzzz\n")


@pytest.mark.parametrize("schedule", ["often", "16", "16:0", "32:4,16:2", "16:2,32:4", "16:x"])
def test_a_schedule_that_is_none(run_qprobe: Run, schedule: str) -> None:
    ran = run_qprobe("serve", "--schedule", schedule)
    assert (ran.status, ran.heavy) == (2, set())
    assert "argument --schedule: " in ran.err
    assert schedule in ran.err


@pytest.mark.parametrize("spelling", [0, -1])
def test_every_flag_of_vllm_is_taken(spelling: int) -> None:
    """All at once, and ours behind them: none takes more than it should."""
    values = {"int": "1", "float": "0.5"}
    given: dict[str, list[str]] = {"engine": [], "server": []}
    for group, flags in FLAGS.items():
        for each in flags:
            value = str(each.get("choices", [values.get(each.get("type", ""), "x")])[0])
            if each["flags"] != ["--config"]:  # is read, see below
                given[group].append(each["flags"][spelling])
                given[group] += [] if each["nargs"] in (0, "?") else [value]
    args = arguments.parse(["serve", "org/model", *given["engine"], *given["server"], "--k", "4"])
    assert (args.model_tag, args.k) == ("org/model", 4)
    args = arguments.parse([*COLLECT, *given["engine"], "--n", "4"])
    assert (args.n, args.layout) == (4, "rows")


def test_what_vllm_is_to_read_is_what_was_written() -> None:
    """But for what a --config says; see the contract with vLLM."""
    argv = ["serve", "org/model", "--max_model_len", "9", "-cc.mode", "3", "-O2"]
    assert arguments.parse(argv).argv == argv


def test_a_choice_that_is_none_is_refused(run_qprobe: Run) -> None:
    ran = run_qprobe("serve", "--dtype", "floatt")
    assert (ran.status, ran.heavy) == (2, set())
    assert "argument --dtype: invalid choice: 'floatt'" in ran.err


@given(st.lists(st.from_regex(r"[a-z0-9/=:_.]{1,9}", fullmatch=True)))
def test_values_are_left_alone(values: list[str]) -> None:
    assert normalize(values) == values
    assert normalize(["-0.5", *(f"--a={each}" for each in values)]) == [
        "-0.5",
        *(f"--a={each}" for each in values),
    ]


CONFIG = "port: 1234\nk: 3\nmax-model-len: 64\nenforce-eager: false\nspeculative-config: {a: 1}\n"


def test_a_config_file_stands_behind_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG + "model: org/other\n")
    for config in (["--config", str(path)], [f"--config={path}"]):
        args = arguments.parse(["serve", "org/model", "--k", "5", *config])
        assert (args.k, args.port, args.max_model_len) == (5, 1234, "64")
        assert (args.model_tag, args.model) == ("org/model", None)
        assert "--no-enforce-eager" in args.argv
        assert not any("--config" in each for each in args.argv if "spec" not in each)
    args = arguments.parse(["serve", "--config", str(path)])
    assert (args.model_tag, args.model) == (None, "org/other")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.yaml", "porrt: 1\n", "unrecognized argument: --porrt; did you mean --port?"),
        ("c.json", "{}", "must end in .yaml or .yml"),
        ("c.yml", "a", "must hold flags and their values"),
        ("c.yml", "a: [", "is not YAML"),
        ("c.yml", None, "No such file"),
    ],
)
def test_a_config_file_that_is_not_right(
    run_qprobe: Run, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    ran = run_qprobe("serve", "--config", path)
    assert (ran.status, ran.heavy) == (2, set())
    assert said in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["collect", ".", "-o", __file__], "argument PROMPTS: must be a file, and '.' is a folder"),
        (["collect", "nothing", "-o", "x"], "argument PROMPTS: must be a file, and 'nothing' is"),
        (["collect", __file__, "-o", __file__], "argument -o/--output: must be a folder, and"),
    ],
)
def test_swapped_and_missing_arguments(run_qprobe: Run, args: list[str], said: str) -> None:
    ran = run_qprobe(*args)
    assert (ran.status, ran.heavy) == (2, set())
    assert said in ran.err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "qprobe: /: is a folder, and a file is wanted"),
        (f"{__file__}/x", f"qprobe: {__file__}/x: is a file, and a folder is wanted"),
        ("/nowhere", "qprobe: /nowhere: is not there"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    """Where nothing has looked at it before."""
    monkeypatch.setattr(train, "run", lambda _: Path(path).read_bytes())
    monkeypatch.setattr(sys, "argv", ["qprobe", "train", ".", "--layer", "3", "-o", "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == said
