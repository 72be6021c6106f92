"""Splits text into what may be statements of Python, and tells code from sentences."""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = [
    "Unit",
    "begin_to_define",
    "bound_names",
    "define",
    "missing_names",
    "parse",
    "split_units",
    "stored_attributes",
]

# A line at the margin that goes on with what began before it.
_GOES_ON = re.compile(r"(?:else|elif|except|finally)\b|[)\]}#]|$")
_DECORATOR = re.compile(r"@\w")
_DEFINITION = re.compile(r"(?:async +)?def +\w+ *[(\[]|class +\w+ *[(:\[]")
# Of how many lines at the margin a text in a string or in brackets may consist.
_MAX_LINES_AT_MARGIN = 40
_CODE = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign,
    ast.AugAssign, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Assert, ast.Delete,
    ast.AsyncFor, ast.AsyncWith, ast.Raise, ast.Global, ast.Pass,
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Lines of which the first stands at the margin.

    Attributes:
        text: Without the line break at its end.
        tree: Its syntax tree; None if it is not Python.
    """

    text: str
    tree: ast.Module | None

    @property
    def is_code(self) -> bool:
        """Whether it is Python that is not by chance also a word or two of a sentence."""
        if self.tree is None:
            return False
        return all(_is_code(each) for each in self.tree.body)

    @property
    def may_be_words(self) -> bool:
        """Whether it is Python by chance only: "Done", or "Note: recursion"."""
        statements = self.tree.body if self.tree is not None else []
        return any(
            isinstance(each, ast.Expr | ast.AnnAssign) and not _is_code(each) for each in statements
        )

    @property
    def looks_defined(self) -> bool:
        """Whether it begins as a function or a class does."""
        return any(_DEFINITION.match(line) for line in self.text.split("\n", 20)[:20])


def _is_code(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        is_text = isinstance(statement.value, ast.Constant) and isinstance(
            statement.value.value, str
        )
        return is_text or isinstance(statement.value, ast.Call | ast.Await)
    if isinstance(statement, ast.AnnAssign):
        return statement.value is not None
    return isinstance(statement, _CODE)


def parse(text: str) -> ast.Module | None:
    """Return the syntax tree of Python source, None if it is none."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def split_units(text: str) -> list[Unit]:
    """Split text at the lines that begin something new at the margin."""
    pieces: list[list[str]] = []
    for line in text.split("\n"):
        at_margin = bool(line) and not line[0].isspace()
        starts = at_margin and not _GOES_ON.match(line)
        if starts and pieces and _DECORATOR.match(pieces[-1][-1]):
            starts = False  # what is decorated
        if starts or not pieces:
            pieces.append([])
        pieces[-1].append(line)
    return list(_parse_pieces(["\n".join(each) for each in pieces]))


def _parse_pieces(pieces: list[str]) -> Iterator[Unit]:
    index = 0
    while index < len(pieces):
        text, tree = pieces[index], parse(pieces[index])
        used = 1
        # A string or brackets may hold lines at the margin.
        if tree is None and _may_go_on(text):
            for more in range(2, min(_MAX_LINES_AT_MARGIN, len(pieces) - index) + 1):
                longer = "\n".join(pieces[index : index + more])
                if (tree := parse(longer)) is not None:
                    text, used = longer, more
                    break
        yield Unit(text, tree)
        index += used


def _may_go_on(text: str) -> bool:
    return text.count('"""') % 2 == 1 or text.count("'''") % 2 == 1 or _ends_open(text)


def _ends_open(text: str) -> bool:
    return text.rstrip().endswith(("(", "[", "{", ","))


def bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds where it stands, in no order."""
    left = [statement]
    while left:
        each = left.pop()
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield each.name
        elif isinstance(each, ast.Import | ast.ImportFrom):
            for alias in each.names:
                yield alias.asname or alias.name.partition(".")[0]
        else:
            yield from _stored_names(each)
            for node in ast.iter_child_nodes(each):
                if isinstance(node, ast.stmt):
                    left.append(node)
                elif isinstance(node, ast.ExceptHandler | ast.match_case):
                    left.extend(node.body)


def _stored_names(statement: ast.stmt) -> Iterator[str]:
    for node in ast.iter_child_nodes(statement):
        if isinstance(node, ast.expr | ast.withitem):
            yield from (
                each.id
                for each in ast.walk(node)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            )


def define(tree: ast.Module, names: Iterable[str], *, by_def: bool) -> bool:
    """Return whether a module binds one of some names, and not as a mere outline.

    Args:
        tree: Of the module.
        names: Of which it must bind one.
        by_def: Whether an assignment of anything but a function does not count.
    """
    wanted = frozenset(names)
    return any(
        not wanted.isdisjoint(bound_names(each))
        and not _is_outline(each)
        and not (by_def and _is_plain_assignment(each))
        for each in tree.body
    )


def begin_to_define(text: str, names: Iterable[str]) -> bool:
    """Return whether text that is not Python begins to define one of some names."""
    either = "|".join(map(re.escape, names))
    return bool(either) and bool(
        re.search(rf"^(?:(?:async +)?def|class) +(?:{either})\b", text, re.MULTILINE)
    )


def _is_plain_assignment(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign | ast.AnnAssign) and not isinstance(
        statement.value, ast.Lambda
    )


def _is_outline(statement: ast.stmt) -> bool:
    """Return whether it is a function that has nothing but a docstring, ``...`` or ``pass``."""
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in statement.body
    )


def missing_names(tree: ast.Module) -> set[str]:
    """Return the names that a module reads and neither binds nor gets from Python."""
    read: set[str] = set()
    bound: set[str] = {name for each in tree.body for name in bound_names(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.stmt):
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
                bound.update(bound_names(node))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound - vars(builtins).keys()


def stored_attributes(source: str) -> set[str]:
    """Return the attributes that methods of any class of some source set on their instance."""
    found = set()
    for kind in ast.walk(ast.parse(source)):
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*method.args.posonlyargs, *method.args.args]
                me = arguments[0].arg if arguments else None
                found |= {
                    node.attr
                    for node in ast.walk(method)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == me
                }
    return found
