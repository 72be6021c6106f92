"""Turns the rows of published data sets, as they are published, into rows of prompts."""

import ast
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["LAYOUTS", "Layout"]

Json = dict[str, Any]
Layout = Literal["rows", "mbpp", "humaneval"]


def _as_it_is(row: Json) -> Json:
    return row


def _from_mbpp(row: Json) -> Json:
    """Turn a row of MBPP into one of ours.

    The first test is shown, since nothing else tells the function's name and arguments; the others
    stay hidden, so that they cannot be answered by heart.
    """
    task = read_text(*(("text", row["text"]) if "text" in row else ("prompt", row.get("prompt"))))
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
    content = (
        f"{task}\n\nAnswer with the function in one Python code block. It must pass this test:\n\n"
        f"```python\n{first}\n```"
    )
    made = {name: value for name, value in row.items() if name != "prompt"}
    entry_point = _tested_function(row.get("code"), first)
    if entry_point is not None:
        made["entry_point"] = entry_point
    made |= {"messages": [{"role": "user", "content": content}], "tests": tests}
    return made | {"setup": "\n".join(lines)}


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
    """Turn a row of HumanEval into one of ours; its prompt is the setup too, for its helpers."""
    prompt, test, entry_point = (
        read_text(name, row.get(name)) for name in ("prompt", "test", "entry_point")
    )
    content = (
        "Complete this function. Answer with the whole function, imports included, in one Python "
        f"code block.\n\n```python\n{prompt.strip()}\n```"
    )
    made = {name: value for name, value in row.items() if name != "prompt"}
    tests = [test, f"check({entry_point})"]
    return made | {
        "messages": [{"role": "user", "content": content}],
        "setup": prompt,
        "tests": tests,
    }


LAYOUTS: dict[Layout, Callable[[Json], Json]] = {
    "rows": _as_it_is,
    "mbpp": _from_mbpp,
    "humaneval": _from_humaneval,
}
