"""How errors cross: by the nearest of their classes that the other side has, with what they say.

Of an exception class of the answer's own the judge has a class of the same name, made of nothing
but the exchange, so that a test can catch what it names.
"""

import builtins
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from .remote import RemoteObject

__all__ = ["Failures", "is_of_sandbox"]

Wire = Any  # what JSON can say
Value = Any  # of whatever type can cross
_MAX_TEXT = 1000
_Exceptions = (Exception, SystemExit)


class _Codec(Protocol):
    is_unsupported: bool
    _is_judge: bool

    def encode(self, value: object) -> Wire: ...
    def decode(self, wire: Wire) -> Value: ...
    def encode_items(self, mapping: Mapping[Any, Any]) -> list[Wire]: ...
    def decode_items(self, items: Wire) -> dict[Any, Any]: ...
    def remote(self, number: int) -> RemoteObject: ...
    def class_of_setup(self, name: str) -> Value: ...
    def _mine(self, value: object) -> Wire: ...


class Failures:
    """Makes JSON of errors and errors of JSON.

    Args:
        codec: Of the same side.
    """

    def __init__(self, codec: _Codec) -> None:
        self._codec = codec
        self._classes: dict[int, type] = {}  # that stand for the other side's, by number
        self._numbers: dict[type, int] = {}

    def encode_class(self, kind: type) -> Wire:
        """Return the class of an error, or the nearest above it that the other side has."""
        return ["class of errors", *self._describe(kind)]

    def _describe(self, kind: type) -> list[Wire]:
        if kind in self._numbers:
            return ["yours", self._numbers[kind]]
        name, module = kind.__name__, kind.__module__
        if self._codec.class_of_setup(name) is kind:
            return ["setup", name]
        found = getattr(builtins, name, None)
        # Also one of the answer's that bears the name: the tests mean Python's.
        if isinstance(found, type) and issubclass(found, BaseException):
            return ["builtin", name]
        if module.partition(".")[0] in sys.stdlib_module_names:
            return ["library", module, name, self._describe_base(kind)]
        if self._codec._is_judge:
            return self._describe_base(kind)
        return ["mine", self._codec._mine(kind)[1], name, self._describe_base(kind)]

    def _describe_base(self, kind: type) -> list[Wire]:
        return self._describe(next(each for each in kind.__bases__ if _is_of_errors(each)))

    def decode_class(self, content: list[Wire]) -> Any:  # noqa: ANN401 a class of errors
        """Return the class that ``encode_class`` described, or the nearest that is here.

        Raises:
            TypeError: It was made by something else.
        """
        where, name, *more = content
        found: Value = None
        if where == "builtin":
            found = getattr(builtins, name)
        elif where == "setup":
            found = self._codec.class_of_setup(name)
        elif where == "yours":
            found = self._codec.decode(["yours", name])
        elif where == "library":
            # Of a module that is here already: a test that names the class has imported it.
            found = getattr(sys.modules.get(name), str(more[0]), None)
            if not isinstance(found, type) or not issubclass(found, _Exceptions):
                return self.decode_class(more[1])
        elif where == "mine":
            found = self._stand_in(int(name), str(more[0]), more[1])
        if not isinstance(found, type) or not issubclass(found, BaseException):
            raise TypeError(name)
        return found

    def _stand_in(self, number: int, name: str, base: list[Wire]) -> type:
        if number not in self._classes:
            above = self.decode_class(base)
            kind = type(name, (above,), {"__getattr__": _ask_attribute, "__str__": _say})
            self._classes[number] = kind
            self._numbers[kind] = number
        return self._classes[number]

    def encode(self, error: BaseException) -> list[Wire]:
        """Return class, arguments, attributes, text, number, and whether it is the sandbox's."""
        codec = self._codec
        try:
            args = [codec.encode(each) for each in error.args]
        except Exception:  # noqa: BLE001 what cannot cross
            args = [_describe_text(error)]
        try:
            held = codec.encode_items(vars(error))
        except Exception:  # noqa: BLE001 likewise
            held = []
        number = codec._mine(error)[1]
        described = self._describe(type(error))
        return [described, args, held, _describe_text(error), number, is_of_sandbox(error)]

    def decode(self, content: list[Wire], *, may_end: bool) -> BaseException:
        """Return the error that ``encode`` described.

        Args:
            content: As it returned it.
            may_end: Whether it may be the end of an iterator: else it would end a loop of the
                test's, as if all had been seen.
        """
        described, args, held, text, number, is_unsupported = content
        if is_unsupported:
            self._codec.is_unsupported = True
        kind = self.decode_class(described)
        if not issubclass(kind, _Exceptions) or (
            issubclass(kind, StopIteration | StopAsyncIteration) and not may_end
        ):
            kind = RuntimeError
        values = [self._codec.decode(each) for each in args]
        try:
            error: BaseException = kind.__new__(kind, *values)
        except Exception:  # noqa: BLE001 of a class that wants others
            error, values = kind.__new__(kind, text), [text]
        error.args = tuple(values)
        if (
            kind.__module__.partition(".")[0] in sys.stdlib_module_names
        ):  # none of setup's, whose methods count
            vars(error).update(self._codec.decode_items(held))
        if kind in self._numbers:
            vars(error)["_said"] = text
            vars(error)["_origin"] = self._codec.remote(number)
        return error


def _is_of_errors(kind: type) -> bool:
    return issubclass(kind, BaseException)


def _ask_attribute(self: BaseException, name: str) -> object:
    origin = vars(self).get("_origin")
    if origin is None or name.startswith("__"):
        raise AttributeError(name)
    return getattr(origin, name)


def _say(self: BaseException) -> str:
    said = vars(self).get("_said")
    return Exception.__str__(self) if said is None else str(said)


def is_of_sandbox(error: BaseException) -> bool:
    """Return whether an error is of what the sandbox lacks: modules, threads, files, input."""
    if isinstance(error, ModuleNotFoundError):
        name = str(error.name).partition(".")[0]
        return name not in sys.stdlib_module_names and name != "None"
    text = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, PermissionError | EOFError) or "can't start new thread" in text


def _describe_text(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001 the answer's own class may do anything here
        return ""
