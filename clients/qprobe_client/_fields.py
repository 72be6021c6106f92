"""Reads JSON objects field by field, so that what is typed is also true.

An error names the field and never shows its value, which may be an answer or a prompt.
"""

from typing import Any, Self, TypeVar

from qprobe_client.errors import ReplyError

__all__ = ["Fields"]

T = TypeVar("T")
Other = TypeVar("Other")


class Fields:
    """An object of a reply.

    Args:
        value: What should be an object.
        path: Where it stands in the reply; empty for the reply itself.
    """

    def __init__(self, value: Any, path: str = "") -> None:
        self._values: dict[str, Any] = _check(value, dict, path)
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._values.get(name) is not None

    def get(self, name: str, kind: type[T]) -> T:
        """Return a field that must be there.

        Raises:
            ReplyError: It is not, or of another kind.
        """
        return _check(self._values.get(name), kind, self._below(name))

    def find(self, name: str, kind: type[T]) -> T | None:
        """Return a field, or None if it is absent or null; raises as ``get`` does."""
        return self.get(name, kind) if name in self else None

    def one_of(self, name: str, kind: type[T], other: type[Other]) -> T | Other:
        """Return a field of either kind; raises as ``get`` does."""
        value = self._values.get(name)
        return self.get(name, kind) if isinstance(value, kind) else self.get(name, other)

    def list_of(self, name: str, kind: type[T]) -> list[T]:
        """Return a list of one kind of values; raises as ``get`` does."""
        path = self._below(name)
        values = self.get(name, list)
        return [_check(value, kind, f"{path}[{i}]") for i, value in enumerate(values)]

    def list_with_nulls(self, name: str, kind: type[T]) -> list[T | None]:
        """Return a list whose values may be null; raises as ``get`` does."""
        path = self._below(name)
        return [
            None if value is None else _check(value, kind, f"{path}[{i}]")
            for i, value in enumerate(self.get(name, list))
        ]

    def find_list(self, name: str, kind: type[T]) -> list[T] | None:
        """Return a list, or None if it is absent or null; raises as ``get`` does."""
        return self.list_of(name, kind) if name in self else None

    def numbers(self) -> dict[str, float]:
        """Return all fields as numbers; raises as ``get`` does."""
        return {name: self.get(name, float) for name in self._values}

    def below(self, name: str) -> Self:
        """Return an object within this one; raises as ``get`` does."""
        return type(self)(self._values.get(name), self._below(name))

    def each(self, name: str) -> list[Self]:
        """Return a list of objects within this one; raises as ``get`` does."""
        path = self._below(name)
        values = self.get(name, list)
        return [type(self)(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _below(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def _check(value: Any, kind: type[T], path: str) -> T:
    if kind is float and type(value) is int:
        value = float(value)  # JSON has one kind of number
    if not isinstance(value, kind) or (type(value) is bool and kind is not bool):
        place = f"the reply's {path}" if path else "the reply"
        raise ReplyError(f"{place} must be {kind.__name__}, got {type(value).__name__}")
    return value
