"""Turns the rows of published data sets, as they are published, into rows of prompts."""

import ast
import sys
from collections.abc import Callable, Iterator
from textwrap import indent
from typing import Any, Literal

from qprobe.data.chats import user
from qprobe.data.fields import read_text, show
from qprobe.data.preferences import unfold
from qprobe.errors import RowError

__all__ = ["LAYOUTS", "Layout"]

Json = dict[str, Any]
Layout = Literal["rows", "mbpp", "mbpp-raw", "humaneval", "humaneval-raw"]


def _from_rows(row: Json) -> Json:
    """Turn a row into one of ours by the columns that it has; most are ours already."""
    is_asked = any(row.get(name) is not None for name in ("prompt", "messages"))
    if not is_asked and row.get("question") is not None:
        return unfold(_from_question(row))
    _check_system(row)
    return unfold(row)


def _check_system(row: Json) -> None:
    """Refuse a system's message that no chat of the row has: without it, it asks something else."""
    system = row.get("system")
    chats = [row.get(name) for name in ("messages", "prompt", "chosen")]
    firsts = [chat[0] for chat in chats if isinstance(chat, list) and chat]
    if not isinstance(system, str) or not system:
        return
    if {"role": "system", "content": system} not in firsts:
        raise RowError(
            "system",
            "is read beside 'question' alone: make it the first of 'messages', or give the column "
            f"another name by --columns NAME=system, got {show(system)}",
        )


def _from_question(row: Json) -> Json:
    """Turn a row of GSM8K, or of preferences laid out like it, into one of ours."""
    made = {name: value for name, value in row.items() if name not in ("question", "system")}
    before = []
    if row.get("system"):
        before.append({"role": "system", "content": read_text("system", row["system"])})
    return made | {"messages": [*before, user(read_text("question", row["question"]))]}


def _from_mbpp(row: Json) -> Json:
    """Turn a row of MBPP, or of EvalPlus' MBPP+, into a chat.

    The first test is shown, since nothing else tells the function's name and arguments; the others
    stay hidden, so that they cannot be answered by heart.
    """
    task, first, made = _read_mbpp(row)
    content = (
        f"{task}\n\nAnswer with the function in one Python code block. It must pass this test:\n\n"
        f"```python\n{first}\n```"
    )
    return made | {"messages": [user(content)]}


def _from_mbpp_raw(row: Json) -> Json:
    """Turn a row of MBPP into text that a model goes on with: the task as a module's docstring."""
    task, first, made = _read_mbpp(row)
    return made | {"prompt": f'"""\n{task}\n{first}\n"""\n'}


def _read_mbpp(row: Json) -> tuple[str, str, Json]:
    """Return the task, its first test, and the row's fields without the prompt.

    ``visible_tests`` are those that the prompt shows, with what must be run before them.
    """
    name = "prompt" if row.get("text") is None else "text"
    task = read_text(name, row.get(name))
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests:
        raise RowError("test_list", f"must be a non-empty list, got {show(tests)}")
    tests = [read_text(f"test_list[{index}]", each) for index, each in enumerate(tests)]
    imports = row.get("test_imports") or []
    if not isinstance(imports, list):
        raise RowError("test_imports", f"must be a list, got {show(imports)}")
    lines = [read_text(f"test_imports[{index}]", each) for index, each in enumerate(imports)]
    # Not every release says that its tests need math; an answer's own math must not serve.
    lines += [f"import {name}" for name in _used_modules(tests)]
    before_tests = read_text("test_setup_code", row.get("test_setup_code") or "")
    if before_tests:  # it builds the tests' arguments, often of the answer's own classes
        tests = [before_tests, *tests]
    first = tests[1] if before_tests else tests[0]
    visible = [before_tests, first] if before_tests else [first]
    if row.get("test") is not None:  # EvalPlus' own, beside those of MBPP
        tests.append(read_text("test", row["test"]))
    made = {name: value for name, value in row.items() if name != "prompt"}
    entry_point = _tested_function(row.get("code"), first)
    if entry_point is not None:
        made["entry_point"] = entry_point
    made |= {"tests": tests, "visible_tests": visible, "setup": "\n".join(lines)}
    return task, first, made


def _used_modules(tests: list[str]) -> list[str]:
    return sorted(
        {
            node.value.id
            for test in tests
            for node in _walk(test)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in sys.stdlib_module_names
        }
    )


def _walk(source: str) -> Iterator[ast.AST]:
    """Return the nodes of Python source, none if it is not valid: ``check`` will say so."""
    try:
        return ast.walk(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return iter(())


def _tested_function(solution: object, test: str) -> str | None:
    """Return the function of the reference solution that a test names: it may be named ``sum``."""
    defined = _walk(solution) if isinstance(solution, str) else iter(())
    names = {node.name for node in defined if isinstance(node, ast.FunctionDef)}
    called = (node.func for node in _walk(test) if isinstance(node, ast.Call))
    return next((f.id for f in called if isinstance(f, ast.Name) and f.id in names), None)


def _from_humaneval(row: Json) -> Json:
    """Turn a row of HumanEval into a chat; its prompt is the setup too, for its helpers."""
    prompt, made = _read_humaneval(row)
    content = (
        "Complete this function. Answer with the whole function, imports included, in one Python "
        f"code block.\n\n```python\n{prompt.strip()}\n```"
    )
    return made | {"messages": [user(content)], "setup": prompt}


def _from_humaneval_raw(row: Json) -> Json:
    """Turn a row of HumanEval into text that a model goes on with; ``join`` tells the reward so."""
    prompt, made = _read_humaneval(row)
    return made | {"prompt": prompt, "join": True}


def _read_humaneval(row: Json) -> tuple[str, Json]:
    """Return the function's head, and the row's fields without it."""
    prompt, entry_point = (read_text(name, row.get(name)) for name in ("prompt", "entry_point"))
    if row.get("test") is None and "base_input" in row:
        test = _make_check(row, prompt, entry_point)
    else:
        test = read_text("test", row.get("test"))
    made = {name: value for name, value in row.items() if name != "prompt"}
    return prompt, made | {"tests": [test, f"check({entry_point})"]}


def _make_check(row: Json, prompt: str, entry_point: str) -> str:
    """Return the test of a row as EvalPlus itself has it: inputs, and a solution to agree with."""
    inputs = []
    for name in ("base_input", "plus_input"):
        given = row.get(name) or []
        if not isinstance(given, list) or not all(isinstance(each, list) for each in given):
            raise RowError(name, f"must be a list of lists of arguments, got {show(given)}")
        inputs += given
    solution = read_text("canonical_solution", row.get("canonical_solution"))
    tolerance = row.get("atol") or 0
    if not isinstance(tolerance, int | float):
        raise RowError("atol", f"must be a number, got {show(tolerance)}")
    return _CHECK.format(
        solution=indent(prompt + solution, "    "),
        entry_point=entry_point,
        inputs=inputs,
        tolerance=tolerance,
    )


# The solution is in a function of its own, so that nothing of it is there for an answer.
_CHECK = """\
import copy

def make_reference():
{solution}
    return {entry_point}

def is_same(found, wanted):
    if isinstance(wanted, (list, tuple)):
        return (
            type(found) is type(wanted)
            and len(found) == len(wanted)
            and all(is_same(one, other) for one, other in zip(found, wanted))
        )
    if isinstance(wanted, float):
        return abs(found - wanted) <= max({tolerance}, 1e-9 * abs(wanted)) or found == wanted
    return found == wanted

def check(candidate):
    reference = make_reference()
    for arguments in {inputs!r}:
        wanted = reference(*copy.deepcopy(arguments))
        assert is_same(candidate(*copy.deepcopy(arguments)), wanted)
"""


LAYOUTS: dict[Layout, Callable[[Json], Json]] = {
    "rows": _from_rows,
    "mbpp": _from_mbpp,
    "mbpp-raw": _from_mbpp_raw,
    "humaneval": _from_humaneval,
    "humaneval-raw": _from_humaneval_raw,
}
