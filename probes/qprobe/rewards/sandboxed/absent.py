"""What stands for numpy where the answer runs: ``setup`` may import it there, nobody may use it."""

import ast
from collections.abc import Iterator
from typing import NoReturn

__all__ = ["Absent", "take_imports_out"]

_PACKAGE = "numpy"


class Absent:
    """Has any attribute, so that ``setup`` may annotate with it; a use is as an import of numpy."""

    def __getattr__(self, name: str) -> "Absent":
        """Return another."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)

    __call__ = __getitem__ = __iter__ = __float__ = __neg__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


def take_imports_out(source: str) -> tuple[str, list[str]]:
    """Return a source without its imports of numpy at the margin, and the names that they bind."""
    if _PACKAGE not in source:
        return source, []
    tree = ast.parse(source)
    names: list[str] = []
    kept: list[ast.stmt] = []
    for statement in tree.body:
        taken = list(_imports(statement))
        names += [each.asname or each.name.partition(".")[0] for each in taken]
        if isinstance(statement, ast.Import):
            statement.names = [each for each in statement.names if each not in taken]
            taken = [] if statement.names else taken
        kept += [] if taken else [statement]
    tree.body = kept
    return ast.unparse(tree), names


def _imports(statement: ast.stmt) -> Iterator[ast.alias]:
    if isinstance(statement, ast.Import):
        yield from (each for each in statement.names if _is_of_package(each.name))
    elif isinstance(statement, ast.ImportFrom) and _is_of_package(statement.module or ""):
        yield from statement.names


def _is_of_package(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE
