"""Rows that bring their own solution must be solved by it before a model is loaded."""

from pathlib import Path

import pytest

from qprobe.data.prompts import PromptRow
from qprobe.rewards import make_reward
from qprobe_server.commands.solutions import check_solutions
from qprobe_server.errors import StartupError

PATH = Path("tasks.jsonl")
GOOD = {"tests": ["assert f(1) == 2"], "solution": "def f(x): return x + 1"}
ROWS = [
    PromptRow(prompt="f", fields=fields, line=line)
    for line, fields in enumerate(
        [
            GOOD,
            {**GOOD, "solution": "def f(x): return x"},
            {"tests": GOOD["tests"]},
            {**GOOD, "solution": "def f(x) return x"},
        ],
        1,
    )
]


def test_rows_that_are_not_solved_are_named_with_the_reason() -> None:
    with pytest.raises(StartupError) as caught:
        check_solutions(PATH, ROWS, make_reward("tests"), workers=2, keep=False)
    said = str(caught.value)
    assert "2 of 4 rows of 'tasks.jsonl'" in said
    assert "line 2 (failed), line 4 (syntax)" in said
    assert "--keep-unsolved" in said


def test_they_can_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    check_solutions(PATH, ROWS, make_reward("tests"), workers=2, keep=True)
    assert "line 2 (failed)" in capsys.readouterr().err


def test_rows_that_are_solved_and_other_rewards_pass(capsys: pytest.CaptureFixture[str]) -> None:
    check_solutions(PATH, [ROWS[0], ROWS[2]], make_reward("tests"), workers=2, keep=False)
    check_solutions(PATH, ROWS, make_reward("numeric"), workers=2, keep=False)
    assert capsys.readouterr().err == ""
