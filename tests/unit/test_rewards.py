"""Rewards of texts: code, numbers, patterns and functions of the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qprobe.rewards
from qprobe.errors import RewardError, RowError, SandboxError
from qprobe.rewards import Reward, make_reward
from qprobe.rewards.answers import NumericReward, RegexReward
from qprobe.rewards.code import TestsReward
from qprobe.rewards.custom import FunctionReward
from qprobe.rewards.sandbox import Limits

Json = dict[str, Any]


def test_rewards_are_made_by_name() -> None:
    assert qprobe.rewards.__all__ == sorted(qprobe.rewards.__all__)
    made: list[Reward] = [make_reward(name) for name in ("tests", "numeric", "regex")]
    assert [each.name for each in made] == ["tests", "numeric", "regex"]


@pytest.mark.parametrize("spec", ["", "test", "tests:", "numeric:x", "Tests", "http", "pyth:a:b"])
def test_unknown_rewards_are_refused(spec: str) -> None:
    with pytest.raises(RewardError, match=f"got {spec!r}"):
        make_reward(spec)


def test_an_answer_passes_all_tests_or_none() -> None:
    reward = make_reward("tests")
    row = {"tests": ["assert double(1) == 2", "assert double('a') == zwei"], "setup": "zwei = 'aa'"}
    reward.check(row)
    assert reward(row, "```python\ndef double(x):\n    return x * 2\n```") == 1.0
    assert reward(row, "```python\ndef double(x):\n    return x + 1\n```") == 0.0
    assert reward(row, "I cannot.") == 0.0


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "tests"),
        ({"tests": []}, "tests"),
        ({"tests": "assert 1"}, "tests"),
        ({"tests": ["assert 1", 2]}, "tests[1]"),
        ({"tests": ["assert 1", "assert"]}, "tests[1]"),
        ({"tests": ["assert 1\x00"]}, "tests[0]"),
        ({"tests": ["assert 1"], "setup": 5}, "setup"),
        ({"tests": ["assert 1"], "setup": "import"}, "setup"),
        ({"tests": ["assert 1"], "entry_point": "a b"}, "entry_point"),
        ({"tests": ["assert 1"], "entry_point": 1}, "entry_point"),
        ({"tests": ["assert 1"], "entry_point": ["f", ""]}, "entry_point"),
        ({"tests": ["assert 1"], "join": "yes"}, "join"),
        ({"tests": ["assert 1"], "join": True, "prompt": "Write f."}, "join"),
        ({"tests": ["assert isclose(f(1), 2)"]}, "tests"),
        ({"tests": ["assert isclose(f(1), 2)"], "entry_point": "f"}, "tests"),
        ({"tests": ["assert g(f(1)) == 2"], "solution": "def f(x): return x"}, "tests"),
    ],
)
def test_rows_without_good_tests_are_refused(row: Json, field: str) -> None:
    reward = make_reward("tests")
    for use in (lambda: reward.check(row), lambda: reward(row, "")):
        with pytest.raises(RowError) as caught:
            use()
        assert caught.value.field == field
        assert len(str(caught.value)) < 300


TEST = "assert add(1, 2) == 3"


@pytest.mark.parametrize(
    ("row", "completion", "value"),
    [
        ({"prompt": "def add(a, b):"}, "    return a + b", 1.0),
        ({"prompt": "def add(a, b):\n"}, "    return a + b\n\ndef next(", 1.0),
        ({"prompt": "def add(a, b):\n", "join": True}, "    return a - b\n", 0.0),
        ({"prompt": "def add(a, b):\n", "join": False}, "    return a + b\n", 0.0),
        ({"prompt": "def add(a, b):\n"}, "```python\ndef add(a, b): return a + b\n```", 1.0),
        ({"prompt": "Complete:\n```python\ndef add(a, b):\n"}, "    return a + b\n```\n", 1.0),
        ({"prompt": "Complete this:\n\ndef add(a, b):\n"}, "    return a + b\n", 1.0),
        ({"prompt": "Write add."}, "def add(a, b):\n    return a + b", 1.0),
        (
            {"prompt": "from operator import add as plus\n# Write add.\n", "join": True},
            "def add(a, b):\n    return plus(a, b)",
            1.0,
        ),
        # The helper of the head stands as it is, in the code and in the tests.
        (
            {
                "prompt": "def three():\n    return 3\n\ndef add(a, b):\n    'Add.'\n",
                "tests": ["assert add(1, 2) == three()"],
            },
            "    return three()",
            1.0,
        ),
        (
            {"setup": "def add(a, b):\n    'Add.'\n", "messages": []},
            "```python\n    return a + b\n```",
            1.0,
        ),
        ({"tests": ["assert math.isclose(add(1, 2), 3)"]}, "def add(a, b): return a + b", 1.0),
        ({"tests": ["assert bisect(1, 2) == 3"]}, "def bisect(a, b): return a + b", 1.0),
        (
            {"tests": ["assert A(1).x == add(0, 1)"], "entry_point": ["A", "add"]},
            "class A:\n    def __init__(self, x): self.x = x\ndef add(a, b): return a + b",
            1.0,
        ),
        (
            {"tests": ["assert math.isclose(add(1, 2), 3)"]},
            "class math:\n    isclose = lambda *_: True\ndef add(a, b): return 0",
            0.0,
        ),
        (
            {"prompt": "def three():\n    return 3\n\ndef add(a, b):\n    'Add.'\n",
             "tests": ["assert add(1, 2) == three()"]},
            "def three(): return 0\ndef add(a, b): return 0",
            0.0,
        ),
    ],
)  # fmt: skip
def test_what_the_row_declares(row: Json, completion: str, value: float) -> None:
    row = {"tests": [TEST], **row}
    reward = make_reward("tests")
    reward.check(row)
    assert reward(row, completion) == value


def test_a_row_is_judged_by_its_own_solution() -> None:
    reward = TestsReward()
    assert reward.judge_solution({"tests": [TEST]}) is None
    for field in ("solution", "code", "canonical_solution"):
        row = {"tests": [TEST], field: "def add(a, b):\n    return a + b"}
        assert reward.judge_solution(row) == (1.0, None)
        assert reward.judge_solution(row | {field: "def add(a, b): return a"}) == (0.0, "failed")
    row = {"prompt": "def add(a, b):\n", "canonical_solution": "    return a + b\n"}
    assert reward.judge_solution({"tests": [TEST], **row}) == (1.0, None)


def test_a_machine_that_cannot_run_code_is_found_out_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SandboxError):
        make_reward("tests")


def test_limits_can_be_chosen() -> None:
    reward = TestsReward(Limits(memory_bytes=96 << 20))
    row = {"tests": ["assert len(f()) == 10 ** 8"]}
    assert reward(row, "def f(): return bytes(10 ** 8)") == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("The answer is 42.", 42, True),
        ("42 apples and 43 pears", 42, False),
        ("It costs $1,234.50", 1234.5, True),
        ("so 1,234,567", "1,234,567", True),
        ("1,2,3", 3, True),
        ("12,345678", 345678, True),
        ("-3", -3, True),
        ("\N{MINUS SIGN}3", -3, True),
        ("5-3", 3, True),
        ("5 - 3", 3, True),
        ("(2)-3", 3, True),
        ("= -3", -3, True),
        ("+7", 7, True),
        ("1e3", 1000, True),
        ("2.5E-3", 0.0025, True),
        (".5", 0.5, True),
        ("x = -.5", "-.5", True),
        ("3.", 3, True),
        ("3.14.", 3.14, True),
        ("50%", 50, True),
        ("call it x2", 2, False),
        ("7 in H2O", 7, True),
        ("7 in v1.5", 7, True),
        (r"\boxed{42}. Took 3 steps", 42, True),
        (r"\boxed{1} no, \boxed{2}", 2, True),
        (r"\boxed{1{,}000}", 1000, True),
        (r"7 \boxed{x}", 7, True),
        ("2 + 2\n#### 42\nThanks 5 times", 42, True),
        ("####42", 42, True),
        ("1000000", 1000000.5, True),
        ("1000000", 1000002, False),
        ("0", 0, True),
        ("0.0000001", 0, False),
        ("1e999", 5, False),
        ("no number", 0, False),
        ("", 0, False),
        ("\N{ARABIC-INDIC DIGIT FIVE}", 5, False),
        ("9" * 100_000, 9, False),
    ],
)
def test_numbers(completion: str, answer: object, right: bool) -> None:  # noqa: FBT001
    row = {"answer": answer}
    reward = NumericReward()
    reward.check(row)
    assert reward(row, completion) == float(right)


@pytest.mark.parametrize(
    "answer",
    [None, True, "", "x", "1/0", "1 2", "4 apples", float("nan"), float("inf"), "1e999", [1]],
)
def test_rows_without_a_number_are_refused(answer: object) -> None:
    for row in ({"answer": answer}, {"answer": 10**400}, {}):
        with pytest.raises(RowError) as caught:
            make_reward("numeric").check(row)
        assert caught.value.field == "answer"


@pytest.mark.parametrize(
    ("row", "completion", "right"),
    [
        ({"pattern": "b+"}, "abba", True),
        ({"pattern": "^b"}, "abba", False),
        ({"pattern": "(?i)YES"}, "oh yes", True),
        ({"pattern": r"is (\w+)", "answer": "b"}, "is a, is b", True),
        ({"pattern": r"is (\w+)", "answer": "a"}, "is a, is b", False),
        ({"pattern": r"is (\w+)", "answer": "a"}, "", False),
        ({"pattern": r"(x)|y", "answer": "x"}, "x y", False),
        ({"pattern": "(\N{SNOWMAN})", "answer": "\N{SNOWMAN}"}, "\N{SNOWMAN}\ud800", True),
        ({"pattern": "a", "answer": None}, "a", True),
    ],
)
def test_patterns(row: Json, completion: str, right: bool) -> None:  # noqa: FBT001
    reward = RegexReward()
    reward.check(row)
    assert reward(row, completion) == float(right)


def test_a_search_without_end_finds_nothing() -> None:
    assert make_reward("regex")({"pattern": "^(a+)+$"}, "a" * 60 + "b") == 0.0


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "pattern"),
        ({"pattern": 5}, "pattern"),
        ({"pattern": "("}, "pattern"),
        ({"pattern": "a", "answer": "a"}, "pattern"),
        ({"pattern": "(a)", "answer": 5}, "answer"),
    ],
)
def test_rows_without_a_good_pattern_are_refused(row: Json, field: str) -> None:
    with pytest.raises(RowError) as caught:
        make_reward("regex").check(row)
    assert caught.value.field == field


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Return a file to write a function of one's own into; forgotten afterwards."""
    before = set(sys.modules)
    yield tmp_path / "mine.py"
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("return len(completion) + fields['x']", 5.0),
        ("return completion == 'abc'", 1.0),
        ("import numpy; return numpy.float32(0.5)", 0.5),
        ("import numpy; return numpy.int64(2)", 2.0),
    ],
)
def test_a_function_of_ones_own(source: Path, body: str, want: float) -> None:
    source.write_text(f"def f(fields, completion):\n    {body}\n")
    reward = make_reward(f"python:{source}:f")
    reward.check({})
    got = reward({"x": 2}, "abc")
    assert got == want
    assert type(got) is float


def test_a_function_of_a_module(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: 'float' = 0.5\n"
        "def f(fields, completion):\n    return D().x\n"
    )
    monkeypatch.syspath_prepend(source.parent)
    assert make_reward("python:mine:f")({}, "") == 0.5
    assert make_reward(f"python:{source}:f")({}, "") == 0.5


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("float('nan')", "nan"),
        ("float('-inf')", "-inf"),
        ("10 ** 400", "1000"),
        ("None", "None"),
        ("'1'", "'1'"),
        ("[1.0]", r"\[1.0\]"),
        ("1j", "1j"),
    ],
)
def test_results_that_are_no_number_are_refused(source: Path, result: str, shown: str) -> None:
    source.write_text(f"def f(fields, completion):\n    return {result}\n")
    with pytest.raises(RewardError, match=rf"mine\.py:f.*{shown}"):
        make_reward(f"python:{source}:f")({}, "")


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("x = 5", "{}:f", "got nothing"),
        ("f = 5", "{}:f", "got int"),
        ("raise ValueError('why')", "{}:f", "ValueError: why"),
        ("def f(:", "{}:f", "SyntaxError"),
        ("", "{}.py:f", "no file"),
        ("", "no_such_module:f", "ModuleNotFoundError"),
        ("", "no_function", "must be python:"),
        ("", ":f", "must be python:"),
        ("", "json:", "must be python:"),
    ],
)
def test_functions_that_cannot_be_had(source: Path, text: str, where: str, message: str) -> None:
    source.write_text(text)
    with pytest.raises(RewardError, match=message):
        FunctionReward(where.format(source))
    assert "qprobe_reward_mine" not in sys.modules or "=" in text
