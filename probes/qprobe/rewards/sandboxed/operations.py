"""What one side may ask of an object of the other."""

import copy
import operator
from collections.abc import Callable
from typing import Any

from .loops import complete

__all__ = ["OPERATIONS"]


def _call(function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
    return function(*args, **kwargs)


def _operate(value: object, name: str, other: object, swapped: bool) -> object:  # noqa: FBT001
    return getattr(operator, name)(*((other, value) if swapped else (value, other)))


def _is_instance(kind: Any, value: object) -> bool:  # noqa: ANN401 whatever the test names
    return isinstance(value, kind)


def _is_subclass(kind: Any, value: Any) -> bool:  # noqa: ANN401 likewise
    return issubclass(value, kind)


def _enter(context: Any) -> object:  # noqa: ANN401 likewise
    return type(context).__enter__(context)


def _exit(context: Any, error: BaseException | None) -> bool:  # noqa: ANN401 likewise
    return bool(type(context).__exit__(context, type(error) if error else None, error, None))


def _next_awaited(iterator: Any) -> object:  # noqa: ANN401 likewise
    return complete(anext(iterator))


def _enter_awaited(context: Any) -> object:  # noqa: ANN401 likewise
    return complete(type(context).__aenter__(context))


def _exit_awaited(context: Any, error: BaseException | None) -> bool:  # noqa: ANN401 likewise
    kind = type(error) if error else None
    return bool(complete(type(context).__aexit__(context, kind, error, None)))


def _content(value: Any) -> object:  # noqa: ANN401 likewise
    """Return the value of a builtin type that an instance of a subclass of it is, else None.

    Raises:
        TypeError: It equals nothing but itself: then it is just wrong.
    """
    if getattr(type(value), "__eq__", None) is object.__eq__:
        raise TypeError("an object that equals nothing else")
    kinds: tuple[Any, ...] = (
        *(int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
    )
    return next((kind(value) for kind in kinds if isinstance(value, kind)), None)


OPERATIONS: dict[str, Callable[..., object]] = {
    "abs": abs, "aenter": _enter_awaited, "aexit": _exit_awaited, "aiter": aiter,
    "anext": _next_awaited, "await": complete, "bool": bool, "call": _call,
    "contains": operator.contains, "content": _content, "copy": copy.copy,
    "deepcopy": copy.deepcopy, "delattr": delattr, "delitem": operator.delitem, "enter": _enter,
    "exit": _exit, "float": float, "format": format, "getattr": getattr,
    "getitem": operator.getitem, "hash": hash, "instance of": _is_instance, "int": int,
    "invert": operator.invert, "iter": iter, "len": len, "neg": operator.neg, "next": next,
    "operate": _operate, "pos": operator.pos, "repr": repr, "reversed": reversed, "round": round,
    "setattr": setattr, "setitem": operator.setitem, "str": str, "subclass of": _is_subclass,
}  # fmt: skip
