"""What stands in one process for an object that stays in the other.

What a test does with it is done there; but a plain value that the answer's own class gives in
return must not decide what only a right value may. So with a plain value it is not compared, and of
what comes of counting with one (``f(3) - 8``) nothing plain is taken: an answer could return an
object from which everything differs by 0. Two objects of the answer's may be compared and counted
with, as a test of its class must.
"""

import operator
from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn, Protocol

__all__ = ["RemoteObject", "mark_class", "number_of"]

Value = Any  # of whatever type can cross
# What modules such as ``copy`` and ``pickle`` look for is not asked for.
_SPECIAL = frozenset(
    ("__name__", "__qualname__", "__dict__", "__annotations__", "__wrapped__", "__defaults__")
)


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

    def refuse(self, what: str) -> NoReturn:
        """Note that the exchange cannot carry what a test does, and raise TypeError."""


class RemoteObject:
    """Stands for an object of the other process, and forwards to it what a test may ask."""

    __slots__ = ("__number", "__peer", "__traits")
    __number: int
    __peer: Asker
    # ``class``: its instances are ``own``, made by the test itself, who may ask what is in them.
    # ``mixed``: it came of counting with a plain value.
    __traits: set[str]

    def __init__(self, peer: Asker, number: int) -> None:
        object.__setattr__(self, "_RemoteObject__peer", peer)
        object.__setattr__(self, "_RemoteObject__number", number)
        object.__setattr__(self, "_RemoteObject__traits", set())

    def __call__(self, /, *args: object, **kwargs: object) -> object:
        """Call it there."""
        made = self.__peer.ask("call", self.__number, args, kwargs)
        if "class" in self.__traits and isinstance(made, RemoteObject):
            made.__traits.add("own")
        return made

    def __ask(self, operation: str, *args: object) -> Any:  # noqa: ANN401 whatever comes
        return self.__peer.ask(operation, self.__number, args)

    def __ask_plain(self, operation: str, *args: object) -> Any:  # noqa: ANN401 likewise
        """Ask for what may be plain, unless it comes of counting with a plain value."""
        got = self.__ask(operation, *args)
        if "mixed" in self.__traits:
            if not isinstance(got, RemoteObject):
                self.__peer.refuse(f"{operation}() of what was counted with a plain value")
            got.__traits.add("mixed")
        return got

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name not in _SPECIAL:
            raise AttributeError(name)
        return self.__ask("getattr", name)

    def __setattr__(self, name: str, value: object) -> None:
        self.__ask("setattr", name, value)

    def __delattr__(self, name: str) -> None:
        self.__ask("delattr", name)

    def __getitem__(self, key: object) -> object:
        return self.__ask("getitem", key)

    def __setitem__(self, key: object, value: object) -> None:
        self.__ask("setitem", key, value)

    def __delitem__(self, key: object) -> None:
        self.__ask("delitem", key)

    def __len__(self) -> int:
        return operator.index(self.__ask("len"))

    def __bool__(self) -> bool:
        return self.__ask_plain("bool") is True

    def __str__(self) -> str:
        return str(self.__ask("str"))

    def __repr__(self) -> str:
        return str(self.__ask("repr"))

    def __format__(self, how: str) -> str:
        return str(self.__ask("format", how))

    def __hash__(self) -> int:
        return operator.index(self.__ask("hash"))

    def __int__(self) -> int:
        return int(self.__ask_plain("int"))

    def __float__(self) -> float:
        return float(self.__ask_plain("float"))

    def __round__(self, *digits: object) -> object:
        return self.__ask_plain("round", *digits)

    def __abs__(self) -> object:
        return self.__ask_plain("abs")

    def __neg__(self) -> object:
        return self.__ask_plain("neg")

    def __pos__(self) -> object:
        return self.__ask_plain("pos")

    def __invert__(self) -> object:
        return self.__ask_plain("invert")

    def __copy__(self) -> object:
        return self.__ask("copy")

    def __deepcopy__(self, _: object) -> object:
        return self.__ask("deepcopy")

    def __reduce_ex__(self, _: object) -> NoReturn:
        self.__peer.refuse("pickle")

    def __mro_entries__(self, _: object) -> NoReturn:
        self.__peer.refuse("a class of a test that inherits from one of the answer's")

    def __iter__(self) -> Iterator[object]:
        iterator: Iterator[object] = self.__ask("iter")
        return iterator

    def __reversed__(self) -> Iterator[object]:
        iterator: Iterator[object] = self.__ask("reversed")
        return iterator

    def __next__(self) -> object:
        return self.__ask("next")

    def __contains__(self, value: object) -> bool:
        if "own" in self.__traits:
            return self.__ask("contains", value) is True
        return any(each is value or each == value for each in self)

    def __instancecheck__(self, value: object) -> bool:
        return self.__ask("instance of", value) is True

    def __subclasscheck__(self, value: object) -> bool:
        return self.__ask("subclass of", value) is True

    def __enter__(self) -> object:
        return self.__ask("enter")

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self.__ask("exit", error) is True

    def __await__(self) -> Generator[None, None, object]:
        yield from ()  # what Python wants is an iterator
        return self.__ask("await")

    def __aiter__(self) -> object:
        return self.__ask("aiter")

    async def __anext__(self) -> object:
        return self.__ask("anext")

    async def __aenter__(self) -> object:
        return self.__ask("aenter")

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self.__ask("aexit", error) is True

    def __eq__(self, other: object) -> bool:
        return other is not None and self.__compare("eq", other)

    def __ne__(self, other: object) -> bool:
        return other is None or self.__compare("ne", other)

    def __lt__(self, other: object) -> bool:
        return self.__compare("lt", other)

    def __le__(self, other: object) -> bool:
        return self.__compare("le", other)

    def __gt__(self, other: object) -> bool:
        return self.__compare("gt", other)

    def __ge__(self, other: object) -> bool:
        return self.__compare("ge", other)

    def __compare(self, how: str, other: object) -> bool:
        if isinstance(other, RemoteObject):
            if {"mixed"} & (self.__traits | other.__traits) and how not in ("eq", "ne"):
                self.__peer.refuse("an order of what was counted with a plain value")
            return self.__ask("operate", how, other, False) is True  # noqa: FBT003
        return bool(getattr(operator, how)(self.__content(), other))

    def __content(self) -> Any:  # noqa: ANN401 of any builtin type
        """Return the value of a builtin type that it is, if its class inherits from one."""
        content = None if "mixed" in self.__traits else self.__ask("content")
        if content is None or isinstance(content, RemoteObject):
            self.__peer.refuse("an object of the answer's own, compared with a plain value")
        return content

    def _operate(self, name: str, other: object, *, swapped: bool) -> object:
        got = self.__ask("operate", name, other, swapped)
        others = other.__traits if isinstance(other, RemoteObject) else {"mixed"}
        if "mixed" not in self.__traits | others:
            return got
        if isinstance(got, RemoteObject):
            got.__traits.add("mixed")
            return got
        if isinstance(other, RemoteObject):
            self.__peer.refuse("counting with what was counted with a plain value")
        operands = (other, self.__content()) if swapped else (self.__content(), other)
        return getattr(operator, name)(*operands)


def _forward(name: str, *, swapped: bool = False) -> Callable[[RemoteObject, object], object]:
    def operate(self: RemoteObject, other: object) -> object:
        return self._operate(name, other, swapped=swapped)

    return operate


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
              "xor", "lshift", "rshift"):  # fmt: skip
    _short = _name.strip("_")
    setattr(RemoteObject, f"__{_short}__", _forward(_name))
    setattr(RemoteObject, f"__r{_short}__", _forward(_name, swapped=True))
    setattr(RemoteObject, f"__i{_short}__", _forward(f"i{_short}"))


def number_of(remote: RemoteObject) -> int:
    """Return the number by which the other side knows the object."""
    number: int = object.__getattribute__(remote, "_RemoteObject__number")
    return number


def mark_class(remote: RemoteObject) -> None:
    """Note that it is a class, by what the tests name it: its instances are made by the test."""
    object.__getattribute__(remote, "_RemoteObject__traits").add("class")
