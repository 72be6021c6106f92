"""The reward ``tests``: an answer's code, run against the row's tests in a sandbox."""

import ast
import symtable
from dataclasses import replace
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.judged import Judged
from qprobe.rewards.sandbox import PASSED, Limits, Program, run_program
from qprobe.rewards.tested import (
    SOLUTIONS,
    check_tests,
    find_head,
    find_modules,
    find_names,
    mention,
    need_numpy,
    read_entry_points,
)

__all__ = ["TestsReward", "check_source", "read_program"]

Json = dict[str, Any]
_MAX_KEPT = 1024
# What tests name when they ask for more than values: of the answer's functions and objects only
# what they return and do crosses, what the tests replace is not replaced there, files are none.
_LOOKS_INSIDE = (
    "mock", "patch", "monkeypatch",
    "inspect", "signature", "getsource", "getdoc", "getfullargspec", "get_annotations",
    "isgenerator", "isgeneratorfunction", "iscoroutinefunction", "iscoroutine", "isfunction",
    "GeneratorType", "FunctionType", "get_type_hints", "dis", "__doc__", "__annotations__",
    "__code__", "__defaults__", "__kwdefaults__", "__wrapped__", "__mro__", "__bases__",
    "asdict", "astuple", "is_dataclass", "dataclasses", "tempfile",
    "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory", "mkstemp", "mkdtemp", "mktemp",
)  # fmt: skip


class TestsReward:
    """1 if an answer's code passes all of the row's tests, else 0.

    ``tests`` of a row is a list of Python statements; ``setup``, if there is one, is run before the
    answer's code and before the tests, and must import what the tests use. ``entry_point``, if
    there is one, names the function under test, or a list of what the tests expect of the answer:
    needed if they use more than one such name, or one of a builtin or of something in ``setup``.
    ``qprobe.rewards.sandboxed.extraction`` says what of an answer is its code; it may go on from a
    raw ``prompt`` that ends in the head of a function, unless ``join`` is false.
    ``qprobe.rewards.sandbox`` says what code can and cannot do.

    Raises:
        SandboxError: This machine cannot run code safely; found out at once.
    """

    __test__ = False  # no test case, whatever pytest thinks of its name
    name = "tests"

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        # By the id of a row, which stays its own as long as the row is kept here. Reading tests of
        # megabytes takes a second, and they are read again for every answer of a prompt.
        self._programs: dict[int, tuple[Json, Program]] = {}
        run_program(Program(answer="a = 1", tests=["assert True"], names=("a",)), self._limits)

    def check(self, fields: Json) -> None:
        """Check ``tests``, ``setup``, ``entry_point`` and ``join``.

        Raises:
            RowError: One of them is not of its type, or not Python, or the tests check nothing or
                use a name that is declared nowhere.
        """
        read_program(fields)

    def __call__(self, fields: Json, completion: str) -> float:
        """Return 1.0 or 0.0.

        Raises:
            RowError: As ``check``.
            SandboxError: The code could not be run.
        """
        return self.judge(fields, completion).value

    def judge(self, fields: Json, completion: str) -> Judged:
        """Return 1.0, or 0.0 and the reason: a verdict of ``qprobe.rewards.sandbox``.

        Raises:
            RowError: As ``check``.
            SandboxError: The code could not be run.
        """
        kept, program = self._programs.get(id(fields), (None, None))
        if program is None or kept is not fields:
            program = read_program(fields)
            if len(self._programs) >= _MAX_KEPT:
                self._programs.clear()
            self._programs[id(fields)] = fields, program
        verdict = run_program(replace(program, answer=completion), self._limits)
        return Judged(1.0) if verdict == PASSED else Judged(0.0, verdict)

    def judge_solution(self, fields: Json) -> Judged | None:
        """Judge the solution that a row brings, if it does; raises as ``judge``."""
        for field in SOLUTIONS:
            solution = fields.get(field)
            if isinstance(solution, str) and solution.strip():
                return self.judge(fields, solution)
        return None


def read_program(fields: Json) -> Program:
    """Return the program of a row's ``tests``, ``setup``, ``entry_point`` and ``join``.

    Raises:
        RowError: As ``TestsReward.check``.
    """
    tests = fields.get("tests")
    if not isinstance(tests, list) or not tests:
        raise RowError("tests", f"must be a non-empty list of Python statements, got {tests!r:.80}")
    for index, test in enumerate(tests):
        check_source(f"tests[{index}]", test)
    check_tests(tests)
    setup = fields.get("setup")
    if setup is not None:
        check_source("setup", setup)
    setup = setup or ""
    entry_points = read_entry_points(fields.get("entry_point"))
    head = find_head(fields, setup)
    if head is not None:  # whose helpers the tests may use, as they stand there
        if head.closed != setup:
            setup = f"{setup}\n{head.closed}"
        entry_points += [head.name] if head.name is not None else []
    sources = [setup, *tests]
    return Program(
        setup=setup,
        answer="",
        tests=tests,
        names=find_names(fields, entry_points, sources),
        modules=tuple(find_modules(sources)),
        head=head.text if head is not None else "",
        may_replace=entry_points,
        needs_numpy=need_numpy(sources),
        asks_type=mention(tests, ["type", "__class__"]),
        looks_inside=mention(tests, _LOOKS_INSIDE),
    )


def check_source(field: str, source: object) -> None:
    """Check that a field is Python.

    Raises:
        RowError: It is not, or it is nested too deeply for Python's parser.
    """
    if not isinstance(source, str):
        raise RowError(field, f"must be a string of Python, got {source!r:.80}")
    try:
        ast.parse(source)
        symtable.symtable(source, field, "exec")
    except (RecursionError, MemoryError) as error:
        raise RowError(field, f"is nested too deeply, got {source!r:.80}") from error
    except (SyntaxError, ValueError) as error:
        raise RowError(field, f"is not Python: {error}, got {source!r:.80}") from error
