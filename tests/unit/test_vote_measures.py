"""What votes are worth on a dataset: by the rule that serves requests, over all subsets."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Dataset
from qprobe.data.layouts import LAYOUTS
from qprobe.data.sample import Sample
from qprobe.data.writer import DatasetWriter
from qprobe.errors import DatasetError, EvaluationError
from qprobe.evaluation import executions
from qprobe.evaluation.executions import Execution
from qprobe.evaluation.expectation import expected_vote_rewards
from qprobe.evaluation.votes import Answers, Vote, find_answers, measure_vote
from qprobe.probe.voting import NO_CLASS, draw_vote
from qprobe.rewards import sandbox
from qprobe.rewards.behaviour import group_outcomes, read_behaviour
from qprobe.rewards.sandbox import Limits, watch_program
from qprobe_server import cli

HIDDEN = 4
# Squares of the argument by two ways, its double, what raises, no code.
CODES = [
    "def f(x): return x * x",
    "def f(x): return x ** 2",
    "def f(x): return x + x",
    "def f(x): return x / 0",
    "none",
]
SHOWN = ["assert f(3) == 9"]


def write_dataset(folder: Path, rows: list[dict[str, Any]], texts: list[str]) -> Path:
    """Every prompt has these texts; the reward is 1 for the first two."""
    manifest = {
        "model": "org/model",
        "hidden_size": HIDDEN,
        "num_layers": 6,
        "readings": ["3/mean"],
        "sampling": None,
        "reward": "tests",
        "prompts": {"name": "p.jsonl", "sha256": "f00"},
        "num_prompts": len(rows),
        "prompts_per_shard": len(rows),
    }
    samples = [
        Sample(prompt, index, text, [1], 1, -1.0, "stop", index, float(index < 2))
        for prompt in range(len(rows))
        for index, text in enumerate(texts)
    ]
    features = np.random.default_rng(0).normal(size=(len(samples), HIDDEN))
    with DatasetWriter(folder, manifest, rows) as writer:
        for shard in writer.missing():
            writer.write(shard, samples, {"3/mean": torch.tensor(features).half()})
        writer.finish()
    return folder


def write_codes(folder: Path, **fields: Any) -> Path:
    rows = [{"prompt": f"p{i}", **{"visible_tests": SHOWN, **fields}} for i in range(3)]
    return write_dataset(folder, rows, CODES)


def find_classes(dataset: Dataset, vote: Vote, execution: Execution) -> Any:
    """Return the classes where all samples of a prompt vote."""
    return find_answers(dataset, vote, execution).of_whole_prompts(dataset.groups)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_a_vote_is_worth_the_mean_of_all_draws(k: int, beta: float) -> None:
    rng = np.random.default_rng(3)
    scores, rewards = rng.normal(size=12), rng.normal(size=12)
    classes = np.array([5, 5, 2, NO_CLASS, 2, 5] + [NO_CLASS] * 5 + [1])
    found = expected_vote_rewards(scores, classes, rewards, np.repeat([0, 1], 6), k=k, beta=beta)
    for prompt, start in enumerate((0, 6)):
        wanted = []
        for subset in combinations(range(start, start + 6), k):
            chosen = list(subset)
            names = [each for each in dict.fromkeys(classes[chosen].tolist()) if each != NO_CLASS]
            of = [NO_CLASS if each == NO_CLASS else names.index(each) for each in classes[chosen]]
            draw = draw_vote(scores[chosen], of, beta, 1, np.random.default_rng(0))
            wanted.append(draw.weights @ rewards[chosen])
        assert found[prompt] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ("code", [0, 0, 1, NO_CLASS, NO_CLASS]),
        ("tests", [0, 0, NO_CLASS, NO_CLASS, NO_CLASS]),
        ("passing", [0, 0, NO_CLASS, NO_CLASS, NO_CLASS]),
        ("text", [0, 1, 2, 3, 4]),
        ("numeric", [NO_CLASS, 0, NO_CLASS, 1, NO_CLASS]),
        (r"regex:return x (\S+)", [0, 1, 2, 3, NO_CLASS]),
        ("json", [NO_CLASS] * 5),
    ],
)
def test_classes_of_samples(tmp_path: Path, spec: str, classes: list[int]) -> None:
    dataset = Dataset.load(write_codes(tmp_path / "data"))
    told: list[None] = []
    execution = Execution(num_workers=2, progress=lambda: told.append(None))
    found = find_classes(dataset, Vote.parse(spec), execution)
    assert found.tolist() == classes * 3
    assert len(told) == 15


@pytest.mark.parametrize("by", ["code", "tests"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_rule_is_that_of_requests(tmp_path: Path, by: str, k: int) -> None:
    """Of every k that vote: also where none of them passes, or none returns anything."""
    shown = ["assert f(3) in (6, 9)"]
    dataset = Dataset.load(write_codes(tmp_path / "data", visible_tests=shown))
    answers = find_answers(dataset, Vote(by), Execution(num_workers=2))
    fields = {"inputs": ["f(3)"]} if by == "code" else {"tests": shown}
    program = read_behaviour(fields)
    limits = Limits(cpu_s=2, wall_s=30)
    outcomes = [watch_program(replace(program, answer=each), limits) for each in CODES]
    scores = np.array([0.1, 0.4, 0.3, 0.9, 1.2])
    rewards = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    wanted = []
    for subset in combinations(range(5), k):
        chosen = list(subset)
        classes = group_outcomes([outcomes[i] for i in chosen], program).of
        draw = draw_vote(scores[chosen], classes, 0.5, 1, np.random.default_rng(0))
        wanted.append(draw.weights @ rewards[chosen])
    found = expected_vote_rewards(
        np.tile(scores, 3),
        answers.classes,
        np.tile(rewards, 3),
        dataset.groups,
        k=k,
        beta=0.5,
        ranks=answers.ranks,
    )
    assert found == pytest.approx([np.mean(wanted)] * 3)


def test_what_passes_may_be_one_answer(tmp_path: Path) -> None:
    shown = ["assert f(3) in (6, 9)"]
    dataset = Dataset.load(write_codes(tmp_path / "data", visible_tests=shown))
    execution = Execution(num_workers=2, kept=tmp_path / "kept.jsonl")
    by_results = find_classes(dataset, Vote("tests"), execution)
    assert by_results[:5].tolist() == [0, 0, 1, NO_CLASS, NO_CLASS]
    as_one = find_classes(dataset, Vote("passing"), execution)
    assert as_one[:5].tolist() == [0, 0, 0, NO_CLASS, NO_CLASS]


def test_where_nothing_passes_results_vote(tmp_path: Path) -> None:
    dataset = Dataset.load(write_codes(tmp_path / "data", visible_tests=["assert f(3) == 7"]))
    execution = Execution(num_workers=2, kept=tmp_path / "kept.jsonl")
    by_results = find_classes(dataset, Vote("tests"), execution)
    assert by_results[:5].tolist() == [0, 0, 1, NO_CLASS, NO_CLASS]
    assert (find_classes(dataset, Vote("passing"), execution) == NO_CLASS).all()


def test_what_has_run_is_kept_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that was stopped in the middle of a line."""
    dataset = Dataset.load(write_codes(tmp_path / "data"))
    kept = tmp_path / "kept.jsonl"
    run: list[str] = []
    real = sandbox.watch_program

    def watched(program: Any, limits: Any) -> Any:
        run.append(program.answer)
        return real(program, limits)

    monkeypatch.setattr(executions, "watch_program", watched)
    first = find_classes(dataset, Vote("code"), Execution(kept=kept))
    assert len(run) == 5, "the three prompts ask the same"
    told: list[None] = []
    execution = Execution(kept=kept, progress=lambda: told.append(None))
    assert find_classes(dataset, Vote("tests"), execution)[0] == 0
    assert (len(run), len(told)) == (5, 15)
    kept.write_bytes(kept.read_bytes()[:-20])
    assert find_classes(dataset, Vote("code"), execution).tolist() == first.tolist()
    assert len(run) == 6
    find_classes(dataset, Vote("code"), execution)
    assert len(run) == 6


@pytest.mark.parametrize(
    ("fields", "tests", "said"),
    [
        ({"visible_tests": None}, "visible_tests", "must be the tests that the prompt shows"),
        ({"visible_tests": []}, "visible_tests", "must be the tests that the prompt shows"),
        ({}, "shown", "--vote-tests FIELD"),
        ({"shown": 3}, "shown", "got 3"),
        ({"shown": SHOWN}, "shown[1]", "must be the tests"),
        ({"shown": ["assert f("]}, "shown", "is not Python"),
        ({"shown": ["assert f(g(1))"]}, "shown", "entry_point"),
    ],
)
def test_rows_without_visible_tests_are_named(
    tmp_path: Path, fields: dict[str, Any], tests: str, said: str
) -> None:
    dataset = Dataset.load(write_codes(tmp_path / "data", **fields))
    with pytest.raises(DatasetError) as refused:
        find_classes(dataset, Vote("code", tests=tests), Execution())
    assert said in str(refused.value)
    assert "prompts.jsonl:1" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "tests"),
    [
        ({"shown": SHOWN}, "shown"),
        ({"shown": SHOWN[0]}, "shown"),
        ({"shown": ["a = 3", *SHOWN]}, "shown[1]"),
    ],
)
def test_visible_tests_may_stand_in_another_field(
    tmp_path: Path, fields: dict[str, Any], tests: str
) -> None:
    dataset = Dataset.load(write_codes(tmp_path / "data", **fields))
    found = find_classes(dataset, Vote("code", tests=tests), Execution(num_workers=2))
    assert found[:5].tolist() == [0, 0, 1, NO_CLASS, NO_CLASS]


@pytest.mark.parametrize("spec", ["number", "regex", "regex:", "regex:(", "text:a", "", "code:"])
def test_what_is_no_vote_is_refused(spec: str) -> None:
    with pytest.raises(EvaluationError, match="vote: ") as refused:
        Vote.parse(spec)
    assert repr(spec.removeprefix("regex:") or spec)[:3] in str(refused.value)


def test_a_vote_is_measured_beside_the_probe(tmp_path: Path) -> None:
    """With all five of a prompt the squares, of reward 1, are the largest class by themselves."""
    dataset = Dataset.load(write_codes(tmp_path / "data"))
    classes = np.array([0, 0, 1, 2, NO_CLASS] * 3)
    scores = np.array([0.0, 0.0, 3.0, 0.0, 9.0] * 3)
    answers = Answers(classes, np.zeros_like(classes))
    found = measure_vote(scores, answers, dataset, Vote("code"), k=5, beta=0.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["by"], found["without_answer"]) == ("code", 0.2)
    assert found["majority"]["reward"] == 1
    assert found["majority"]["gap_closed"]["share"] == pytest.approx(1)
    assert found["majority"]["policy_minus_vote"]["difference"] == pytest.approx(-1)
    assert found["weighted"]["reward"] == 0, "exp(3) is more than twice exp(0)"


def test_eval_prints_and_reports_votes(
    tmp_path: Path,
    make_probe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_codes(tmp_path / "data")
    probe = make_probe("mine", k=5)
    report = tmp_path / "report"
    flags = ["--vote", "code", "--vote", "passing", "--vote", "numeric"]
    command = ["qprobe", "eval", str(probe), str(data), "-o", str(report), *flags]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    votes = json.loads((report / "metrics.json").read_text())["votes"]
    assert [each["by"] for each in votes] == ["code", "passing", "numeric"]
    assert votes[0]["majority"]["reward"] == 1
    assert "majority vote by code: 1.0000" in capsys.readouterr().out
    page = (report / "report.html").read_text()
    assert "majority, by code" in page
    assert "passes the visible tests, best by the probe" in page
    assert "the probe&#39;s scores, by numeric" in page or "the probe's scores, by numeric" in page
    assert len((data / "executions.jsonl").read_text().split()) > 5
    monkeypatch.setattr(sys, "argv", [*command[:6], "--vote", "often"])
    with pytest.raises(
        SystemExit, match="must be numeric, json, text, code, tests, passing or regex:"
    ):
        cli.main()


@pytest.mark.parametrize("layout", ["mbpp", "mbpp-raw"])
def test_mbpp_says_which_test_its_prompt_shows(layout: Any) -> None:
    row = {
        "text": "Square it.",
        "code": "def f(x): return x * x",
        "test_list": ["assert f(2) == 4", "assert f(3) == 9"],
    }
    made = LAYOUTS[layout](row)
    assert made["visible_tests"] == ["assert f(2) == 4"]
    with_setup = LAYOUTS[layout]({**row, "test_setup_code": "a = 2"})
    assert with_setup["visible_tests"] == ["a = 2", "assert f(2) == 4"]
    assert with_setup["tests"] == ["a = 2", *row["test_list"]]
