"""What the tests of a row ask for: which names the answer must define, and what it goes on from."""

import ast
import builtins
import re
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.sandboxed.statements import bound_names, parse

__all__ = [
    "SOLUTIONS",
    "Head",
    "check_tests",
    "find_head",
    "find_modules",
    "find_names",
    "mention",
    "need_numpy",
    "read_entry_points",
]

Json = dict[str, Any]

# Fields by which a row brings its own solution, as data sets name them.
SOLUTIONS = ("solution", "code", "canonical_solution")
_BEGINS_CODE = re.compile(r"^(?:(?:async +)?def|class|import|from|@\w)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_MAX_BEGINNINGS = 50
_DEFINES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass,
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The beginning of a function, a class, or a module.

    Attributes:
        text: As it is given; "" for that of a module, which an answer stands below.
        closed: The same as a module that can be run.
        name: Of the function, or of the class around it.
        is_outline: Whether its body is nothing but a docstring and imports, if anything.
    """

    text: str
    closed: str
    name: str | None
    is_outline: bool


def find_names(
    fields: Json, entry_points: Sequence[str], sources: Sequence[str]
) -> tuple[str, ...]:
    """Return the names that the answer must define, so that the tests can use them.

    They are those of ``entry_point``, and what the tests use and nobody else defines. Such a name
    must be one that the row's own solution defines, or the only one: else an answer might bring a
    helper of the tests with it, such as an ``isclose`` that is always true.

    Args:
        fields: Of the row.
        entry_points: Declared names.
        sources: ``setup`` and the tests.

    Raises:
        RowError: A name of the tests is declared nowhere.
    """
    free = _free_names(sources) - set(find_modules(sources))
    declared = {*entry_points, *_names_of_solution(fields)}
    unknown = sorted(free - declared)
    # What they bring is known when they are run.
    is_open = any("*" in _imported(source) for source in sources)
    if unknown and not is_open and (declared or len(unknown) > 1):
        raise RowError(
            "tests",
            f"use {unknown[0]!r}, which they do not define: import it in 'setup', or, if it is the "
            f"answer's, name it in 'entry_point', a name or a list of them",
        )
    return tuple(sorted(free | set(entry_points)))


def check_tests(tests: Sequence[str]) -> None:
    """Check that tests run something that may fail: else every answer would score 1.

    Raises:
        RowError: They do nothing but define, import and compare, or call ``unittest.main``.
    """
    statements = [each for test in tests for each in ast.parse(test).body]
    for statement in statements:
        is_run = not (isinstance(statement, _DEFINES) or _is_main_guard(statement))
        if is_run and any(map(_is_unittest_main, ast.walk(statement))):
            raise RowError("tests", "call unittest.main(), which ends the process: use assert")
    if not any(map(_may_fail, statements)):
        raise RowError(
            "tests",
            "check nothing when they are run: put an assert, or a call of what they define, such "
            "as check(f), at the margin; pytest, unittest and __main__ are not run",
        )


def _is_unittest_main(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "main"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "unittest"
    )


def _may_fail(statement: ast.stmt) -> bool:
    if isinstance(statement, _DEFINES) or _is_main_guard(statement):
        return False
    if isinstance(statement, ast.Expr):
        return _calls(statement.value)
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return statement.value is not None and _calls(statement.value)
    return True


def _calls(value: ast.AST) -> bool:
    """Return whether an expression calls something, other than to compare what comes of it."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, ast.Call):
            return True
        if not isinstance(each, ast.Compare):
            left.extend(ast.iter_child_nodes(each))
    return False


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(
        isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(statement.test)
    )


def read_entry_points(value: object) -> list[str]:
    """Return the names of ``entry_point``.

    Raises:
        RowError: It is neither a name nor a list of names.
    """
    given = value if isinstance(value, list) else [] if value is None else [value]
    names = [name for name in given if isinstance(name, str) and name.isidentifier()]
    if len(names) < len(given):
        raise RowError(
            "entry_point", f"must be the name of a function, or a list of names, got {value!r:.80}"
        )
    return names


def find_modules(sources: Iterable[str]) -> list[str]:
    """Return the modules of the standard library that sources use without an import.

    Only what they ask for an attribute: ``bisect(3)`` is a function of the answer's.
    """
    sources = list(sources)
    used = {
        node.value.id
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return sorted(used & _free_names(sources) & sys.stdlib_module_names)


def _free_names(sources: Iterable[str]) -> set[str]:
    """Return the global names that are read and that neither sources nor builtins define."""
    read: set[str] = set()
    defined = set(vars(builtins))
    for source in sources:
        top = symtable.symtable(source, "<tests>", "exec")
        for table in _tables(top):
            for symbol in table.get_symbols():
                is_bound = symbol.is_assigned() or symbol.is_imported()
                if table is not top and not symbol.is_global():
                    continue
                if is_bound:
                    defined.add(symbol.get_name())
                elif symbol.is_referenced():
                    read.add(symbol.get_name())
    return read - defined


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    left = [table]
    while left:
        each = left.pop()
        yield each
        left.extend(each.get_children())


def need_numpy(sources: Iterable[str]) -> bool:
    """Return whether sources import numpy."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return any(name.partition(".")[0] == "numpy" for name in names)


def mention(sources: Iterable[str], names: Iterable[str]) -> bool:
    """Return whether sources read, import or ask for one of some names."""
    wanted = frozenset(names)
    return any(
        not wanted.isdisjoint(
            {getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None)}
        )
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name | ast.Attribute | ast.alias)
    )


def _imported(source: str) -> set[str]:
    nodes = ast.walk(ast.parse(source))
    return {each.name for node in nodes if isinstance(node, ast.ImportFrom) for each in node.names}


def _names_of_solution(fields: Json) -> Iterator[str]:
    for field in SOLUTIONS:
        source = fields.get(field)
        tree = parse(source) if isinstance(source, str) else None
        for statement in tree.body if tree is not None else ():
            yield from bound_names(statement)


def find_head(fields: Json, setup: str) -> Head | None:
    """Return the beginning of a function that an answer may go on from, None if there is none.

    It is the end of a raw ``prompt``, if ``join`` does not forbid it, and for a chat the end of
    ``setup``, if that is the mere head of a function.

    Raises:
        RowError: ``join`` is no bool, or true for a chat or a prompt that is no beginning.
    """
    join, prompt = fields.get("join"), fields.get("prompt")
    if not (join is None or isinstance(join, bool)):
        raise RowError("join", f"must be true, false or null, got {join!r:.80}")
    if join is False:
        return None
    if not isinstance(prompt, str):
        head = _read_head(setup)
        return head if head is not None and head.is_outline else None
    fences = list(_FENCE.finditer(prompt))
    code = prompt[fences[-1].end() + 1 :] if len(fences) % 2 else prompt
    beginnings = [0, *(match.start() for match in _BEGINS_CODE.finditer(code))]
    for start in beginnings[:_MAX_BEGINNINGS]:
        head = _read_head(code[start:])
        if head is not None:
            return head
    if join and parse(code) is None:
        raise RowError("join", "is true, but 'prompt' is no beginning of Python")
    return Head("", code, None, is_outline=False) if join else None


def _read_head(text: str) -> Head | None:
    """Return text as a head, None if it does not end within a function or class."""
    lines = text.rstrip().split("\n")
    indent = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
    closed = "\n".join([*lines, f"{indent}    pass"])
    if parse(text) is not None:
        closed = text
    tree = parse(closed)
    last = tree.body[-1] if tree is not None and tree.body else None
    if not isinstance(last, _OPEN):
        return None
    name, inner = last.name, last
    while isinstance(inner, ast.ClassDef) and isinstance(inner.body[-1], _OPEN):
        inner = inner.body[-1]
    is_outline = all(
        isinstance(each, ast.Pass | ast.Import | ast.ImportFrom)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in inner.body
    )
    return Head(text, closed, name, is_outline)


_OPEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
