"""What stands in one process for an object that stays in the other."""

import operator
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

__all__ = ["OPERATIONS", "Asker", "RemoteObject", "number_of"]

Value = Any  # of whatever type can cross


class Asker(Protocol):
    """The end of the exchange on this side."""

    def ask(
        self,
        operation: str,
        number: int,
        args: tuple[Value, ...] = (),
        kwargs: dict[str, Value] | None = None,
    ) -> Value:
        """Have the other side do something with one of its objects; raise what it raised."""


class RemoteObject:
    """Stands for an object of the other process, and forwards to it what a test may ask."""

    __slots__ = ("__number", "__peer")
    __number: int
    __peer: Asker

    def __init__(self, peer: Asker, number: int) -> None:
        object.__setattr__(self, "_RemoteObject__peer", peer)
        object.__setattr__(self, "_RemoteObject__number", number)

    def __call__(self, /, *args: object, **kwargs: object) -> object:
        """Call it there."""
        return self.__peer.ask("call", self.__number, args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # copy, pickle and the like look for these
            raise AttributeError(name)
        return self.__peer.ask("getattr", self.__number, (name,))

    def __setattr__(self, name: str, value: object) -> None:
        self.__peer.ask("setattr", self.__number, (name, value))

    def __getitem__(self, key: object) -> object:
        return self.__peer.ask("getitem", self.__number, (key,))

    def __setitem__(self, key: object, value: object) -> None:
        self.__peer.ask("setitem", self.__number, (key, value))

    def __len__(self) -> int:
        return operator.index(self.__peer.ask("len", self.__number))

    def __bool__(self) -> bool:
        return self.__peer.ask("bool", self.__number) is True

    def __str__(self) -> str:
        return str(self.__peer.ask("str", self.__number))

    def __iter__(self) -> Iterator[object]:
        iterator: Iterator[object] = self.__peer.ask("iter", self.__number)
        return iterator

    def __next__(self) -> object:
        return self.__peer.ask("next", self.__number)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("only values of builtin types, and of classes of setup, can be compared")

    __ne__ = __eq__
    __hash__ = None  # type: ignore[assignment]  # as Python does for what defines __eq__ alone


def number_of(remote: RemoteObject) -> int:
    """Return the number by which the other side knows the object."""
    number: int = object.__getattribute__(remote, "_RemoteObject__number")
    return number


def _call(function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
    return function(*args, **kwargs)


# What one side may ask of an object of the other.
OPERATIONS: dict[str, Callable[..., object]] = {
    "bool": bool, "call": _call, "getattr": getattr, "getitem": operator.getitem, "iter": iter,
    "len": len, "next": next, "setattr": setattr, "setitem": operator.setitem, "str": str,
}  # fmt: skip
