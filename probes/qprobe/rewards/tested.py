"""What the tests of a row ask for: which names the answer must define, and what it goes on from."""

import ast
import builtins
import re
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.sandboxed.statements import bound_names, parse

__all__ = ["SOLUTIONS", "find_head", "find_modules", "find_names", "read_entry_points"]

Json = dict[str, Any]

# Fields by which a row brings its own solution, as data sets name them.
SOLUTIONS = ("solution", "code", "canonical_solution")
_BEGINS_CODE = re.compile(r"^(?:(?:async +)?def|class|import|from|@\w)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_MAX_BEGINNINGS = 50


def find_names(fields: Json, setup: str, tests: Sequence[str]) -> tuple[str, ...]:
    """Return the names that the answer must define, so that the tests can use them.

    They are those of ``entry_point``, and what the tests use and nobody else defines. Such a name
    must be one that the row's own solution defines, or the only one: else an answer might bring a
    helper of the tests with it, such as an ``isclose`` that is always true.

    Raises:
        RowError: A name of the tests is declared nowhere.
    """
    entry_points = read_entry_points(fields.get("entry_point"))
    sources = [setup, *tests]
    free = _free_names(sources) - set(find_modules(sources))
    solved = set(_names_of_solution(fields))
    declared = {*entry_points, *solved}
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
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _imported(source: str) -> set[str]:
    nodes = ast.walk(ast.parse(source))
    return {each.name for node in nodes if isinstance(node, ast.ImportFrom) for each in node.names}


def _names_of_solution(fields: Json) -> Iterator[str]:
    for field in SOLUTIONS:
        source = fields.get(field)
        tree = parse(source) if isinstance(source, str) else None
        for statement in tree.body if tree is not None else ():
            yield from bound_names(statement)


def find_head(fields: Json, setup: str) -> str:
    """Return the beginning of a function that an answer may go on from, "" if there is none.

    It is the end of a raw ``prompt``, if ``join`` does not forbid it, and for a chat the end of
    ``setup``, if that is the mere head of a function.

    Raises:
        RowError: ``join`` is no bool.
    """
    join, prompt = fields.get("join"), fields.get("prompt")
    if not (join is None or isinstance(join, bool)):
        raise RowError("join", f"must be true, false or null, got {join!r:.80}")
    if join is False:
        return ""
    if not isinstance(prompt, str):
        return setup if _is_head(setup, whole=True) else ""
    fences = list(_FENCE.finditer(prompt))
    code = prompt[fences[-1].end() + 1 :] if len(fences) % 2 else prompt
    beginnings = [0, *(match.start() for match in _BEGINS_CODE.finditer(code))]
    for start in beginnings[:_MAX_BEGINNINGS]:
        if _is_head(code[start:], whole=False):
            return code[start:]
    return code if join else ""


def _is_head(text: str, *, whole: bool) -> bool:
    """Return whether text ends within a function or class.

    Args:
        text: Any.
        whole: Whether its body must be nothing but a docstring and imports, if anything.
    """
    lines = text.rstrip().split("\n")
    tree = parse(text) or parse("\n".join([*lines, lines[-1][: _indent(lines[-1])] + "    pass"]))
    last = tree.body[-1] if tree is not None and tree.body else None
    while isinstance(last, ast.ClassDef) and last.body and isinstance(last.body[-1], _OPEN):
        last = last.body[-1]
    if not isinstance(last, _OPEN):
        return False
    return not whole or all(
        isinstance(each, ast.Pass | ast.Import | ast.ImportFrom)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in last.body
    )


_OPEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
