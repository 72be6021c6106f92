"""Groups completions by what their code does: by what its functions return for given calls."""

import ast
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.code import check_source, read_program
from qprobe.rewards.equal import Classes, number
from qprobe.rewards.sandbox import PASSED, Limits, Outcome, Program, Result
from qprobe.rewards.tested import check_tests

__all__ = ["LIMITS", "group_outcomes", "group_results", "rank_outcomes", "read_behaviour"]

Json = dict[str, Any]
_Results = tuple[Result, ...] | None
# Of each of a completion's two processes.
LIMITS = Limits(cpu_s=2, wall_s=10.0, memory_bytes=512 << 20)
_PASSES = 2  # more in rank than to return something
_EQUALITY = (ast.Eq, ast.Is, ast.In)


def read_behaviour(fields: Json) -> Program:
    """Return the program that shows what a completion does, and whether it passes tests.

    Args:
        fields: ``inputs``, a list of expressions that call the completion's functions, or
            ``tests``, or both; ``setup`` and ``entry_point`` as the reward ``tests`` has them. Of
            tests alone the calls are those of their assertions: ``f(2)`` of ``assert f(2) == 4``,
            whose expected value is not used, and what stands before them at the margin.

    Raises:
        RowError: A field is not as said above, or is nested too deeply to be read.
    """
    try:
        return _read(fields)
    except RecursionError as error:  # of ast.unparse, which goes less deep than the parser
        field = "tests" if fields.get("tests") else "inputs"
        raise RowError(field, "is nested too deeply") from error


def _read(fields: Json) -> Program:
    inputs, tests = fields.get("inputs") or [], fields.get("tests") or []
    for index, each in enumerate(inputs):
        _check_input(f"inputs[{index}]", each)
    if not inputs and not tests:
        raise RowError("inputs", "must be a non-empty list of calls, or there must be tests")
    for index, each in enumerate(tests):
        check_source(f"tests[{index}]", each)
    if tests:
        check_tests(tests)
    try:
        program = read_program({**fields, "tests": [*tests, *inputs]})
    except RowError as error:
        field = "inputs" if error.field == "tests" and not tests else error.field
        raise RowError(field, error.message) from error
    for index, each in enumerate(inputs):
        if not _names(ast.parse(each), program.names):
            raise RowError(f"inputs[{index}]", f"calls nothing of the answer's, got {each!r:.80}")
    calls = list(inputs) or [call for each in tests for call in _find_calls(each, program.names)]
    if not inputs and not any(map(_is_expression, calls)):
        calls = []
    return replace(program, tests=list(tests), calls=calls)


def _check_input(field: str, source: object) -> None:
    check_source(field, source)
    assert isinstance(source, str)
    calls = any(isinstance(each, ast.Call) for each in ast.walk(ast.parse(source)))
    if not (_is_expression(source) and calls):
        raise RowError(field, f"must be an expression such as f(2), got {source!r:.80}")


def _is_expression(source: str) -> bool:
    body = ast.parse(source).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def _find_calls(test: str, names: Collection[str]) -> list[str]:
    """Return what a test asks the completion for, and the statements that this needs."""
    found = []
    for statement in ast.parse(test).body:
        if not isinstance(statement, ast.Assert):
            found.append(ast.unparse(statement))
            continue
        asked = _find_asked(statement.test, names)
        found.append((asked and ast.unparse(asked)) or ast.unparse(statement.test))
    return found


def _find_asked(test: ast.expr, names: Collection[str]) -> ast.expr:
    """Return what an assertion asks of what is tested: without the value that it expects.

    It is the side of an equation that names it, else the calls of it, such as that in ``isclose``.
    """
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], _EQUALITY):
        sides = [test.left, *test.comparators]
        return next((each for each in sides if _names(each, names)), test.left)
    calls = _outermost_calls(test, names)
    if len(calls) > 1:
        return ast.Tuple(calls, ast.Load())
    return calls[0] if calls else test


def _names(node: ast.AST, names: Collection[str]) -> bool:
    return any(isinstance(each, ast.Name) and each.id in names for each in ast.walk(node))


def _outermost_calls(node: ast.AST, names: Collection[str]) -> list[ast.expr]:
    found: list[ast.expr] = []
    left = [node]
    while left:
        each = left.pop()
        if isinstance(each, ast.Call) and _names(each.func, names):
            found.append(each)
        else:
            left.extend(reversed([*ast.iter_child_nodes(each)]))
    return found


def group_outcomes(outcomes: Sequence[Outcome | None], program: Program) -> Classes:
    """Group completions by what a program showed of them: by all results of its calls.

    Only those of the best rank (``rank_outcomes``) are of a class.

    Args:
        outcomes: Of each completion; None where it was not run.
        program: As ``read_behaviour`` gives it.
    """
    ranks = rank_outcomes(outcomes, program)
    best = max(ranks, default=0)
    kept = [each if rank == best else None for each, rank in zip(outcomes, ranks, strict=True)]
    notice = None
    if program.tests and best < _PASSES:
        notice = "no candidate passes the tests: none is dropped for that"
    return replace(group_results(kept, program), notice=notice)


def rank_outcomes(outcomes: Sequence[Outcome | None], program: Program) -> list[int]:
    """Return the rank of each completion; of those that vote only the highest rank counts.

    Those that pass the program's tests are before those that do not; then those that return
    something are before those whose every call raises: of MBPP's they are a tenth, and rarely
    right, but often alike.
    """
    ranks = []
    for each in outcomes:
        passes = bool(program.tests) and each is not None and each.verdict == PASSED
        found = _results(each, program)
        returns = found is not None and (not found or not all(one.was_raised for one in found))
        ranks.append(_PASSES * passes + returns)
    return ranks


def group_results(outcomes: Sequence[Outcome | None], program: Program) -> Classes:
    """Group completions by all results of a program's calls, whatever their rank.

    Of no class are those whose calls did not come to an end: no code, a limit of time or memory,
    something that the sandbox lacks, or a result that cannot be compared.
    """
    results = [_results(each, program) for each in outcomes]
    return number(results, lambda each: tuple(one.key for one in each), _write)


def _results(outcome: Outcome | None, program: Program) -> _Results:
    if outcome is None:
        return None
    if not program.calls:  # the tests alone tell
        return () if outcome.verdict == PASSED else None
    return outcome.results


def _write(results: Sequence[Result]) -> str:
    return "; ".join(each.text for each in results) or "passes the tests"
