"""What ``serve`` and ``collect`` refuse before vLLM is imported, by the real command."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qprobe.data.prompts import read_prompts
from qprobe_server.commands import arguments, manifest
from qprobe_server.library.store import ProbeStore

Run = Callable[..., Any]
# Not one that is in use, whoever else runs here.
FREE = ("--port", "0")


def refuse(ran: Any, *, heavy: frozenset[str] = frozenset()) -> str:
    """Return the one line of a refusal, before vLLM and all but ``heavy`` was imported."""
    assert ran.status == 1, ran.err
    assert ran.heavy <= heavy
    (line,) = ran.err.splitlines()
    assert line.startswith("qprobe: ")
    return str(line.removeprefix("qprobe: "))


TORCH = frozenset({"torch"})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--probe", "a"], "--probe 'a': must be NAME=FILE"),
        (["--probe", f"a={__file__}", "--probe", "a=x"], "--probe 'a': the name is given twice"),
        (["--probe", "a=/nowhere"], "--probe a=/nowhere: must be a file, and there is none"),
        (["--probe", "a=/"], "--probe a=/: must be a file, and there is none"),
        (["--default-probe", "b"], "--default-probe 'b' is not loaded; loaded: concise, python"),
        (["org/model", "--default-probe", "b"], "--default-probe 'b' is not loaded; loaded: none"),
        (["--k", "65"], "--k must be from 1 to --max-k (64), got 65"),
        (["--max-k", "0"], "--max-k must be at least 1, got 0"),
        (["--max-body-mib", "0"], "--max-body-mib must be at least 1, got 0"),
        (["--beta", "-0.5"], "--beta must be a finite number >= 0, got -0.5"),
        (["--admin-api-key", " "], "--admin-api-key must not be empty"),
        (
            ["--admin-api-key", "a", "--api-key", "b", "a"],
            "--admin-api-key must differ from --api-key",
        ),
        (["--worker-cls", "some.Worker"], "--worker-cls is qprobe's own, got 'some.Worker'"),
        (["--grpc"], "--grpc cannot be used with qprobe"),
        (
            ["--api-server-count", "2"],
            "--api-server-count must be 1 with qprobe, got 2: a probe that is uploaded to one",
        ),
        (["--served-model-name", "x"], "--served-model-name goes with a MODEL"),
        (["--host", "nowhere.invalid"], "cannot listen on --host 'nowhere.invalid' --port 0"),
        (["--port", "65536"], "--port must be from 0 to 65535, got 65536"),
        (["--uds", "/nowhere/socket"], "--uds '/nowhere/socket' must be in a folder"),
        (["--uds", "/"], "--uds '/' is there already"),
    ],
)
def test_flags_of_serve(run_qprobe: Run, flags: list[str], said: str) -> None:
    assert refuse(run_qprobe("serve", *FREE, *flags)).startswith(said)


def test_a_model_that_cannot_be(run_qprobe: Run, tmp_path: Path) -> None:
    said = "is neither a folder with a config.json nor an id of the hub"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("")
    for name in (tmp_path, tmp_path / "no", "./model", "../model", "a/b/c"):
        assert refuse(run_qprobe("serve", name, *FREE)) == f"model {str(name)!r} {said}"
    collect = ("collect", prompts, "-o", tmp_path / "out", "--reward", "tests")
    assert said in refuse(run_qprobe(*collect, "--model", tmp_path))


def test_a_port_in_use(run_qprobe: Run) -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other:
            other.bind((host, 0))
            other.listen()
            port = other.getsockname()[1]
            line = refuse(run_qprobe("serve", "--host", host, "--port", port))
            assert line == f"port {port} is in use by another process: choose another with --port"


@pytest.mark.parametrize(
    ("fields", "flags", "said"),
    [
        ({"k": 16}, ["--max-k", "8"], "probe 'a': k: recommends k=16, more than --max-k 8"),
        ({"layer": 3}, ["--probe-layers", "4,final"], "probe 'a' reads layer 3, which --probe-l"),
    ],
)
def test_probes_that_do_not_go_with_the_flags(
    run_qprobe: Run, make_probe: Any, fields: dict[str, Any], flags: list[str], said: str
) -> None:
    probe = f"a={make_probe('a', **fields)}"
    line = refuse(run_qprobe("serve", *FREE, "--probe", probe, *flags), heavy=TORCH)
    assert line.startswith(said)


def test_files_that_hold_no_probe(run_qprobe: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_text("nothing")
    line = refuse(run_qprobe("serve", *FREE, "--probe", f"a={file}"), heavy=TORCH)
    assert line.startswith(f"--probe 'a={file}': file: is not a readable probe")


def test_a_folder_of_probes_that_cannot_be_used(run_qprobe: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    line = refuse(run_qprobe("serve", *FREE, "--probe-dir", file), heavy=TORCH)
    assert line.startswith(f"--probe-dir {str(file)!r} cannot be used")
    other = ProbeStore(tmp_path / "probes")
    line = refuse(run_qprobe("serve", *FREE, "--probe-dir", tmp_path / "probes"), heavy=TORCH)
    assert line.endswith("is used by another server")
    other.close()


PROMPTS = [{"prompt": f"{i}", "answer": i} for i in range(3)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in PROMPTS))
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--reward is missing"),
        (["--reward", "best"], "reward must be tests, numeric"),
        (["--reward", "python:/nowhere.py:f"], "reward "),
        (["--reward", "numeric", "--n", "10001"], "--n must be at most 10000, got 10001"),
        (["--completions"], "{prompts}:1: completions: is missing"),
        (["--completions", "--top-p", "1"], "--top-p goes with sampling, not with --completions"),
        (["--reward", "numeric", "--adapter", "/"], "--adapter '/' is no folder of a LoRA"),
        (["--reward", "numeric", "--worker-cls", "a.B"], "--worker-cls is qprobe's own"),
        (["--reward", "regex"], "{prompts}:1: pattern: "),
    ],
)
def test_flags_of_collect(
    run_qprobe: Run, prompts: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    line = refuse(run_qprobe("collect", prompts, "-o", tmp_path / "out", *flags))
    assert line.startswith(said.format(prompts=prompts))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("def f(row): return 1", "must take (row, completion) or, as in TRL, "),
        ("def f(row, completion): return row['gold']", "raised KeyError: 'gold' at {file}:1 "),
        ("def f(completions): return 1.0", "must return a list of 1 numbers"),
    ],
)
def test_a_function_that_cannot_reward(
    run_qprobe: Run, prompts: Path, tmp_path: Path, function: str, said: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(function)
    reward = f"python:{file}:f"
    line = refuse(run_qprobe("collect", prompts, "-o", tmp_path / "out", "--reward", reward))
    assert line.startswith(f"reward {reward!r} {said.format(file=file)}")


def test_rows_that_are_not_solved_by_their_own_solution(run_qprobe: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    row = {"prompt": "def f(x):\n", "tests": ["assert f(2) == 4"], "solution": "    return 3"}
    prompts.write_text(json.dumps(row))
    ran = run_qprobe("collect", prompts, "-o", tmp_path / "out", "--reward", "tests")
    line = refuse(ran)
    assert "line 1 (failed)" in line
    assert "--keep-unsolved" in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_other_things(run_qprobe: Run, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    ran = run_qprobe("collect", prompts, "-o", tmp_path / "out", "--reward", "numeric")
    assert "holds 'mine' but no manifest.json" in refuse(ran, heavy=TORCH)


@pytest.mark.parametrize(
    ("begun", "flags", "said"),
    [
        (["--n", "6"], ["--n", "8"], "--n is 8, but {} with 6: "),
        ([], ["--n", "8"], "--n is 8, but {} with 16: "),
        (["--seed", "1"], ["--seed", "2"], "--seed is 2, but {} with 1: "),
        (["--top-p", "1"], ["--top-p", "0.5"], "--top-p is 0.5, but {} with 1.0: "),
        (["--stop", "a"], ["--stop", "b"], "--stop is ['b'], but {} with ['a']: "),
        ([], ["--no-greedy"], "--no-greedy is True, but {} with False: "),
        ([], ["--limit", "2"], "--limit is 2, but {} with 3: "),
        ([], ["--reward", "python:os:abs"], "reward "),
        ([], ["--prompts-per-shard", "2"], "--prompts-per-shard is 2, but {} with 16: "),
        ([], ["--revision", "x"], "--revision is 'x', but {} with None: "),
        (
            [],
            ["--model", "org/other"],
            "--model, --reader or --embedding-model is 'org/other', but {} with 'org/model': ",
        ),
    ],
)
def test_a_collection_that_goes_on_with_other_flags(
    run_qprobe: Run, prompts: Path, tmp_path: Path, begun: list[str], flags: list[str], said: str
) -> None:
    folder = tmp_path / "out"
    start = ["collect", str(prompts), "-o", str(folder), "--reward", "numeric"]
    begin(folder, prompts, [*start, "--model", "org/model", *begun])
    line = refuse(run_qprobe(*start, "--model", "org/model", *flags))
    assert line.startswith(said.format(f"the dataset in {str(folder)!r} was begun"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--reward", "best"], "reward must be tests, numeric"),
        (["--reward", "numeric", "--reward-batch", "2"], "reward 'numeric' takes one completion a"),
    ],
)
def test_flags_of_reward(run_qprobe: Run, tmp_path: Path, flags: list[str], said: str) -> None:
    assert refuse(run_qprobe("reward", tmp_path, *flags)).startswith(said)
    line = refuse(run_qprobe("reward", tmp_path / "no", *flags))
    assert line.endswith("no' is not there: a dataset's folder is wanted")


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"sampling": 5}', "\x00\x01"])
def test_a_manifest_that_is_torn_or_edited(
    run_qprobe: Run, prompts: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "out" / "manifest.json"
    path.parent.mkdir()
    path.write_text(content)
    line = refuse(run_qprobe("collect", prompts, "-o", path.parent, "--reward", "numeric"))
    assert line.startswith(f"{str(path)!r} is no manifest of a dataset: ")


def test_a_collection_that_an_older_version_began(
    run_qprobe: Run, prompts: Path, tmp_path: Path
) -> None:
    argv = ["collect", str(prompts), "-o", str(tmp_path / "out"), "--reward", "numeric"]
    begin(tmp_path / "out", prompts, argv)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    assert "begun by an older qprobe, which wrote format 1: " in refuse(run_qprobe(*argv))


def begin(folder: Path, prompts: Path, argv: list[str]) -> None:
    """Leave what a collection that was just begun leaves, as far as the flags decide it."""
    made = manifest.describe_flags(arguments.parse(argv), read_prompts(prompts))
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(made))


def test_a_collection_that_goes_on_with_other_prompts(
    run_qprobe: Run, prompts: Path, tmp_path: Path
) -> None:
    argv = ["collect", str(prompts), "-o", str(tmp_path / "out"), "--reward", "numeric"]
    begin(tmp_path / "out", prompts, argv)
    with prompts.open("a") as file:
        file.write(json.dumps(PROMPTS[0]) + "\n")
    assert refuse(run_qprobe(*argv)).startswith("PROMPTS: the files are not what they were when")


def test_a_collection_that_goes_on_with_completions(
    run_qprobe: Run, prompts: Path, tmp_path: Path
) -> None:
    prompts.write_text(json.dumps({**PROMPTS[0], "completions": ["1"]}) + "\n")
    argv = ["collect", str(prompts), "-o", str(tmp_path / "out"), "--reward", "numeric"]
    begin(tmp_path / "out", prompts, argv)
    line = refuse(run_qprobe(*argv, "--completions"))
    assert line.startswith("--completions is True, but ")
