"""The reward ``tests``: an answer's code, run against the row's tests in a sandbox."""

import ast
import re
import textwrap
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.sandbox import Limits, Program, run_program

__all__ = ["TestsReward", "extract_code"]

Json = dict[str, Any]

# A fence opens at the start of a line and ends at the next such line, or where the answer was cut.
# No two neighbouring parts match the same characters: the time is linear, whatever a model writes.
_FENCE = r"^[ \t]*```{tag}\n(.*?)(?:^[ \t]*```|\Z)"
_FLAGS = re.MULTILINE | re.DOTALL | re.IGNORECASE
_PYTHON_FENCE = re.compile(_FENCE.format(tag=r"[ \t]*(?:python3?|py)(?:[ \t\r][^\n`]*)?"), _FLAGS)
_BARE_FENCE = re.compile(_FENCE.format(tag=r"[ \t\r]*"), _FLAGS)


def extract_code(completion: str) -> str:
    """Return the code of an answer.

    It is the first fenced block that is marked as Python, else the first without a mark, else the
    whole text. The last fence need not be closed: an answer may have been cut.
    """
    match = _PYTHON_FENCE.search(completion) or _BARE_FENCE.search(completion)
    return textwrap.dedent(match[1]) if match else completion


class TestsReward:
    """1 if an answer's code passes all of the row's tests, else 0.

    ``tests`` of a row is a list of Python statements; ``setup``, if there is one, is run before the
    answer's code and before the tests, and must import what the tests use. ``entry_point``, if
    there is one, names the function under test; only needed if it bears the name of a builtin or
    of something in ``setup``. ``qprobe.rewards.sandbox`` says what code can and cannot do.

    Raises:
        SandboxError: This machine cannot run code safely; found out at once.
    """

    __test__ = False  # no test case, whatever pytest thinks of its name
    name = "tests"

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        run_program(Program(setup="", code="", tests=["assert True"]), self._limits)

    def check(self, fields: Json) -> None:
        """Check ``tests``, ``setup`` and ``entry_point``.

        Raises:
            RowError: One of them is not of its type, or not Python.
        """
        _read_program(fields, "")

    def __call__(self, fields: Json, completion: str) -> float:
        """Return 1.0 or 0.0.

        Raises:
            RowError: As ``check``.
            SandboxError: The code could not be run.
        """
        program = _read_program(fields, extract_code(completion))
        return float(run_program(program, self._limits))


def _read_program(fields: Json, code: str) -> Program:
    tests = fields.get("tests")
    if not isinstance(tests, list) or not tests:
        raise RowError("tests", f"must be a non-empty list of Python statements, got {tests!r:.80}")
    for index, test in enumerate(tests):
        _check_source(f"tests[{index}]", test)
    setup = fields.get("setup")
    if setup is not None:
        _check_source("setup", setup)
    entry_point = fields.get("entry_point")
    if entry_point is not None and not (
        isinstance(entry_point, str) and entry_point.isidentifier()
    ):
        raise RowError("entry_point", f"must be the name of a function, got {entry_point!r:.80}")
    return Program(setup=setup or "", code=code, tests=tests, entry_point=entry_point)


def _check_source(field: str, source: object) -> None:
    if not isinstance(source, str):
        raise RowError(field, f"must be a string of Python, got {source!r:.80}")
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowError(field, f"is not Python: {error}, got {source!r:.80}") from error
