"""Which completions do the same, by the sandbox itself."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from qprobe.errors import RowError
from qprobe.probe.voting import NO_CLASS
from qprobe.rewards import sandbox
from qprobe.rewards.behaviour import group_outcomes, read_behaviour
from qprobe.rewards.equal import Classes
from qprobe.rewards.sandbox import (
    PASSED,
    TIMEOUT,
    UNSUPPORTED,
    Limits,
    Outcome,
    watch_program,
)

LIMITS = Limits(cpu_s=1, wall_s=30, memory_bytes=256 << 20)


def group(codes: list[str], **fields: Any) -> Classes:
    program = read_behaviour(fields)
    outcomes = [watch_program(replace(program, answer=each), LIMITS) for each in codes]
    return group_outcomes(outcomes, program)


def returns(*values: str) -> list[str]:
    return [f"def f(x): return {each}" for each in values]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("1", "True"),
        ("0.5", "__import__('fractions').Fraction(1, 2)"),
        ("0.5", "__import__('decimal').Decimal('0.50')"),
        ("2", "2 + 0j"),
        ("2**100", "float(2**100)"),
        ("0.0", "-0.0"),
        ("float('nan')", "float('nan')"),
        ("{1: 'a', 'b': [2]}", "{'b': [2.0], 1.0: 'a'}"),
        ("{3, 1, 2}", "frozenset([1, 2, 3])"),
        ("b'a'", "bytearray(b'a')"),
        ("__import__('collections').Counter('aab')", "{'b': 1, 'a': 2}"),
        ("range(3)", "range(0, 3, 1)"),
        ("[1, (2, None)]", "[1.0, (2, None)]"),
        ("'\\u00e9\\ud800'", "'é\\ud800'"),
        ("x // 0", "1 % 0"),
        ("[][x]", "[1, 2][7]"),
        ("int", "int"),
    ],
)
def test_results_that_are_equal(one: str, other: str) -> None:
    assert group(returns(one, other), inputs=["f(3)"]).of == [0, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "'1'"),
        ("[1]", "(1,)"),
        ("0.1 + 0.2", "0.3"),
        ("2**100", "2**100 + 1"),
        ("None", "False"),
        ("{1}", "[1]"),
        ("{}", "[]"),
        ("'a'", "b'a'"),
        ("x // 0", "[][x]"),
        ("range(2)", "[0, 1]"),
        ("__import__('datetime').date(2024, 1, 1)", "'2024-01-01'"),
    ],
)
def test_results_that_differ(one: str, other: str) -> None:
    assert group(returns(one, other), inputs=["f(3)"]).of == [0, 1]


@pytest.mark.parametrize(
    "code",
    [
        "I cannot do that.",
        "def f(x: return x",
        "def g(x): return x",
        "def f(x):\n while True: pass",
        "import os\ndef f(x): os._exit(0)",
        "def f(x): return [0] * 10**10 and 10**(10**10)",
        "def f(x): return iter([x])",
        "def f(x): yield x",
        "class A: pass\ndef f(x): return A()",
        "def f(x): return lambda: x",
        "def f(x): open('/etc/passwd')",
        "import requests\ndef f(x): return x",
        "raise ValueError\ndef f(x): return x",
        "def f(x): return input()",
    ],
)
def test_what_gives_nothing_to_compare_has_no_answer(code: str) -> None:
    assert group([code, "def f(x): return x"], inputs=["f(3)"]).of == [NO_CLASS, 0]


def test_errors_count_beside_values_or_where_there_is_nothing_else() -> None:
    codes = ["def f(x): return x / 0", "def f(x): return 1 / x", "def f(x): return [][x]"]
    assert group(codes, inputs=["f(0)"]).of == [0, 0, 1]
    assert group(codes, inputs=["f(0)", "f(1)"]).of == [NO_CLASS, 0, NO_CLASS]
    codes = ["def f(x): return 1 / x", "def f(x): return x ** -1", "def f(x): return x and 1"]
    assert group(codes, inputs=["f(0)", "f(1)"]).of == [0, 0, 1]


def test_all_inputs_count_and_answers_are_shown() -> None:
    codes = [
        "def f(x): return abs(x)",
        "def f(x): return x",
        "```python\ndef f(x):\n return -x\n```",
    ]
    assert group(codes, inputs=["f(3)"]).of == [0, 0, 1]
    found = group(codes, inputs=["f(3)", "f(-3)", "f('a')"])
    assert found.of == [0, 1, 2]
    assert found.answers == [
        "3; 3; raises TypeError", "3; -3; 'a'", "-3; 3; raises TypeError",
    ]  # fmt: skip


def test_an_input_may_use_what_setup_defines() -> None:
    setup = "import math\nclass P:\n def __init__(self, x): self.x = x"
    codes = ["def f(p): return P(p.x + 1)", "def f(p): return P(2)", "def f(p): return P(0)"]
    inputs = ["f(P(1))", "math.floor(f(P(1)).x)"]
    assert group(codes, inputs=inputs, setup=setup).of == [0, 0, 1]


def test_values_of_a_call_to_several_functions() -> None:
    code = "def f(x): return x\ndef g(x): return {}"
    fields = {"inputs": ["f(g(1))"], "entry_point": ["f", "g"]}
    assert group([code.format("x"), code.format("1"), code.format("2")], **fields).of == [0, 0, 1]


@pytest.mark.parametrize(
    ("test", "call"),
    [
        ("assert f(2) == 4", "f(2)"),
        ("assert 4 == f(2), 'wrong'", "f(2)"),
        ("assert set(f([1])) == set([1])", "set(f([1]))"),
        ("assert f(2) is None", "f(2)"),
        ("assert f(2)[0] in (1, 2)", "f(2)[0]"),
        ("assert f(2)", "f(2)"),
        ("assert not f(2)", "f(2)"),
        ("assert math.isclose(f(2), 4.0, rel_tol=0.1)", "f(2)"),
        ("assert abs(f(2) - 4.0) < 1e-6", "f(2)"),
        ("assert f(1) == 1 and f(2) == 4", "(f(1), f(2))"),
        ("assert expected == f(2)", "f(2)"),
    ],
)
def test_the_call_of_an_assertion_is_without_what_is_expected(test: str, call: str) -> None:
    program = read_behaviour(
        {"tests": [test], "entry_point": "f", "setup": "import math\nexpected = 4"}
    )
    assert list(program.calls) == [call]
    assert list(program.tests) == [test]


def test_what_stands_before_an_assertion_is_run() -> None:
    tests = ["a = [3, 1]\nf(a)\nassert a == [1, 3]"]
    codes = ["def f(x): x.sort()", "def f(x): x.reverse()", "def f(x): pass"]
    found = group(codes, tests=tests)
    assert found.of == [0, 0, NO_CLASS]


def test_what_fails_the_tests_is_dropped_and_the_rest_grouped() -> None:
    codes = returns("x * x", "x + 2", "x + x", "5", "x ** 2")
    assert group(codes, tests=["assert f(2) == 4"]).of == [0, 0, 0, NO_CLASS, 0]
    found = group(codes, tests=["assert f(2) == 4"], inputs=["f(3)"])
    assert found.of == [0, 1, 2, NO_CLASS, 0]
    assert found.notice is None


def test_where_all_fail_none_is_dropped() -> None:
    codes = returns("x", "x", "x + 1")
    found = group(codes, tests=["assert f(2) == 4"])
    assert found.of == [0, 0, 1]
    assert found.notice == "no candidate passes the tests: none is dropped for that"


def test_tests_that_call_nothing_by_themselves_still_drop() -> None:
    tests = ["def check(g):\n assert g(2) == 4", "check(f)"]
    found = group(returns("x * x", "x + 2", "5"), tests=tests, entry_point="f")
    assert found.of == [0, 0, NO_CLASS]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "inputs"),
        ({"inputs": ["f("]}, "inputs[0]"),
        ({"inputs": ["f(1)", "x = f(1)"]}, "inputs[1]"),
        ({"inputs": ["f(1)", ""]}, "inputs[1]"),
        ({"inputs": ["f(1); f(2)"]}, "inputs[0]"),
        ({"tests": ["assert f("]}, "tests[0]"),
        ({"tests": ["x = 1"]}, "tests"),
        ({"tests": ["x = 1"], "inputs": ["f(1)"]}, "tests"),
        ({"inputs": ["f(1)"], "setup": "import"}, "setup"),
        ({"inputs": ["f(1)"], "entry_point": "1f"}, "entry_point"),
        ({"inputs": ["f(g(1))"]}, "inputs"),
        ({"inputs": ["f"]}, "inputs[0]"),
        ({"inputs": ["f(1)", "abs(1)"]}, "inputs[1]"),
    ],
)
def test_what_cannot_be_run_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RowError) as refused:
        read_behaviour(fields)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tests": ["assert f(1)" + "+1" * 400 + " == 3"]}, "tests"),
        ({"tests": ["assert f(1)" + "+1" * 3_000 + " == 3"]}, "tests[0]"),
        ({"tests": ["f" + ".a" * 900 + "()"]}, "tests"),
        ({"inputs": ["f(" + "-" * 5_000 + "1)"]}, "inputs[0]"),
        ({"inputs": ["f(1)"], "setup": "a = " + "-" * 5_000 + "1"}, "setup"),
    ],
)
def test_what_is_nested_too_deeply_names_its_field(fields: dict[str, Any], field: str) -> None:
    """Whether it is too deep for Python's parser, or only for what writes it anew."""
    with pytest.raises(RowError, match="is nested too deeply") as refused:
        read_behaviour(fields)
    assert refused.value.field == field


def test_inputs_may_be_as_deep_as_python_reads() -> None:
    deep = "f(1)" + "+1" * 900
    assert read_behaviour({"inputs": [deep]}).calls == [deep]


@pytest.mark.parametrize(
    "said",
    [
        b'R[["1", "' + b"x" * (1 << 20),
        b"R" + b"[]\n" * (1 << 19),
        b'R[["1", "kiP',  # ended while it was written, behind what looks like a verdict
    ],
)
def test_results_that_are_cut_are_none(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_run", lambda *_: said)
    program = replace(read_behaviour({"inputs": ["f(1)"]}), answer="def f(x): return x")
    assert watch_program(program, LIMITS) == Outcome(UNSUPPORTED, None)


def test_a_program_is_ended_when_it_is_to_stop() -> None:
    program = replace(
        read_behaviour({"inputs": ["f(1)"]}), answer="def f(x):\n import time\n time.sleep(60)"
    )
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    begun_s = time.monotonic()
    outcome = watch_program(program, Limits(), stop=stop)
    assert time.monotonic() - begun_s < 10
    assert (outcome.verdict, outcome.results) == (TIMEOUT, None)
    timer.join()


def test_results_are_there_though_the_tests_do_not_end() -> None:
    program = read_behaviour({"inputs": ["f(1)"], "tests": ["assert f(2) == 2"]})
    code = "def f(x):\n while x == 2: pass\n return x"
    outcome = watch_program(replace(program, answer=code), LIMITS)
    assert outcome.verdict == TIMEOUT
    assert outcome.results is not None
    fine = watch_program(replace(program, answer="def f(x): return x"), LIMITS)
    assert fine.verdict == PASSED
    assert fine.results == outcome.results
