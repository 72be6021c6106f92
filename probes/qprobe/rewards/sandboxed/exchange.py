"""How the process that judges and the one that holds the answer call each other: by value.

Two peers exchange JSON over two pipes; one asks, the other serves, and serving may ask back. Values
of builtin types cross as plain values, whatever subclass they were of; an instance of a class that
``setup`` defines crosses as its attributes and becomes one of the receiver's own class; anything
else stays where it is and the other side holds a ``RemoteObject``. So nothing that the answer made
is ever executed, compared or printed by the judge: an ``__eq__`` of its own decides nothing.
"""

import builtins
import importlib
import json
import os
import sys
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import islice
from typing import Any, NoReturn

from .remote import OPERATIONS, RemoteObject, number_of

__all__ = ["ROOT", "Peer"]

Wire = Any  # what JSON can say
Value = Any  # of whatever type can cross
_MAX_MESSAGE_BYTES = 16 << 20
_MAX_ITEMS = 100_000
_SMALL_INT = 1 << 62  # json reads and writes at most 4300 digits; hexadecimal knows no limit
# The peer's namespace, whose items are its global names.
ROOT = 0


class Peer:
    """One end of the exchange.

    Args:
        reader: Descriptor to read messages from.
        writer: Descriptor to write them to.
        namespace: The global names of this side, which hold the classes that ``setup`` defines.
        is_judge: The judge serves nothing but calls (and truth) of functions that it passed as
            arguments, and takes no builtin function for a value: a message must not become code.
        at_end: Called when the other side is gone or breaks the rules; must not return.
    """

    def __init__(
        self,
        reader: int,
        writer: int,
        *,
        namespace: dict[str, Any],
        is_judge: bool,
        at_end: Callable[[], NoReturn],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._namespace = namespace
        self._is_judge = is_judge
        self._at_end = at_end
        # Kept alive, since the other side knows them by number.
        self._objects: dict[int, object] = {ROOT: namespace}
        self._numbers: dict[int, int] = {}  # of objects, by id()
        self._remote: dict[int, RemoteObject] = {}
        self.setup_classes: frozenset[str] = frozenset()

    def ask(
        self,
        operation: str,
        number: int,
        args: tuple[Value, ...] = (),
        kwargs: dict[str, Value] | None = None,
    ) -> Value:
        """Have the other side do something, serving it meanwhile; raise what it raised."""
        request = [operation, number, self.encode(args), self.encode(kwargs or {})]
        self.send(["ask", *request])
        kind, *content = self.serve(until_reply=True)
        if kind == "error":
            name, text = content
            # It would end a loop of the test's, as if all had been seen.
            if name == "StopIteration" and operation != "next":
                name = "RuntimeError"
            raise self._make_error(name, text)
        value, changes = content
        given = [*args, *(kwargs or {}).values()]
        for index, changed in changes:
            self._replace_content(given[index], self.decode(changed))
        if isinstance(value, list) and value[0] == "argument":
            return given[value[1]]
        return self.decode(value)

    def serve(self, *, until_reply: bool = False) -> list[Wire]:
        """Answer requests; with ``until_reply`` return the first message that is none."""
        while True:
            message = self.receive()
            if message[0] == "ask":
                self.send(self._reply(*message[1:]))
            elif until_reply:
                return message
            else:
                self._at_end()

    def _reply(self, operation: str, number: int, args: Wire, kwargs: Wire) -> list[Wire]:
        if self._is_judge and (operation not in ("bool", "call") or number == ROOT):
            self._at_end()
        try:
            positional, named = self.decode(args), self.decode(kwargs)
            given = [*positional, *named.values()]
            before = [*args[1], *(value for _, value in kwargs[1])]
            value = OPERATIONS[operation](self._objects[number], *positional, **named)
            return ["value", self._encode_result(value, given), self._changes(given, before)]
        except Exception as error:  # noqa: BLE001 whatever the called code raises, the asker gets
            # A test's own function has found a mistake, which the answer must not swallow.
            if self._is_judge and isinstance(error, AssertionError):
                self._at_end()
            return ["error", self._name_error(error), _describe(error)]

    def _encode_result(self, value: object, given: list[object]) -> Wire:
        """Encode a result, or say which argument it is: tests may ask whether it is the same."""
        for index, each in enumerate(given):
            if each is value and self._is_mutable(each):
                return ["argument", index]
        return self.encode(value)

    def _name_error(self, error: Exception) -> str:
        """Return the first of the error's classes that the other side knows too."""
        for kind in type(error).__mro__:
            known = self._setup_class(kind.__name__) or getattr(builtins, kind.__name__, None)
            if known is kind:
                return str(kind.__name__)
        return "RuntimeError"

    def _make_error(self, name: str, text: str) -> Exception:
        kind = self._setup_class(name) or getattr(builtins, name, None)
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            kind = RuntimeError
        error: Exception = kind.__new__(kind, text)
        error.args = (text,)
        return error

    def _changes(self, given: list[object], before: list[Wire]) -> list[Wire]:
        """Return which arguments were changed in place, and what they are now."""
        changes = []
        for index, value in enumerate(given):
            if self._is_mutable(value):
                after = self.encode(value)
                if after != before[index]:
                    changes.append([index, after])
        return changes

    def _is_mutable(self, value: object) -> bool:
        return isinstance(value, _MUTABLE) or self._is_of_setup(value)

    def _setup_class(self, name: str) -> Value:
        return self._namespace.get(name) if name in self.setup_classes else None

    def _is_of_setup(self, value: object) -> bool:
        name = type(value).__name__
        return name in self.setup_classes and self._namespace.get(name) is type(value)

    def _replace_content(self, target: Value, source: Value) -> None:
        """Make a container, or an instance, equal to another of its type, in place."""
        alike = [kind for kind in _MUTABLE if isinstance(target, kind)] or [type(target)]
        if not self._is_mutable(target) or not issubclass(type(source), alike[0]):
            self._at_end()
        if isinstance(target, list | bytearray):
            target[:] = source
        elif isinstance(target, deque):
            target.clear()
            target.extend(source)
        elif isinstance(target, dict | set):
            target.clear()
            target.update(source)
        else:
            target.__dict__.clear()
            target.__dict__.update(vars(source))

    def send(self, message: list[Wire]) -> None:
        """Write one message.

        Raises:
            ValueError: It is too long.
        """
        data = json.dumps(message).encode()
        if len(data) > _MAX_MESSAGE_BYTES:
            raise ValueError("the value is too large")
        data = len(data).to_bytes(4, "big") + data
        while data:
            try:
                data = data[os.write(self._writer, data) :]
            except OSError:
                self._at_end()

    def receive(self) -> list[Wire]:
        """Read one message."""
        length = int.from_bytes(self._read(4), "big")
        if length > _MAX_MESSAGE_BYTES:
            self._at_end()
        message = json.loads(self._read(length))
        if not isinstance(message, list) or not message:
            self._at_end()
        return message

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = os.read(self._reader, length - len(data))
            if not more:
                self._at_end()
            data += more
        return data

    def encode(self, value: object) -> Wire:
        """Return a value in JSON: scalars as they are, all else as [kind, ...]."""
        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, int):
            return value if -_SMALL_INT < value < _SMALL_INT else ["int", hex(value)]
        if type(value) is RemoteObject:
            return ["yours", number_of(value)]
        if self._is_of_setup(value):
            return self._encode_instance(value)
        if type(value) in _EXACT_ENCODERS:
            kind, encode = _EXACT_ENCODERS[type(value)]
            return [kind, *encode(self, value)]
        for kind, of, encode in _ENCODERS:
            if isinstance(value, of):
                return [kind, *encode(self, value)]
        return self._encode_object(value)

    def _encode_object(self, value: object) -> Wire:
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            # The judge takes no function: the answer's max stays where it is.
            if self._is_judge or isinstance(value, type):
                return ["builtin", name]
        elif self._is_judge and not callable(value):
            if isinstance(value, Iterator):
                return ["iterator", [self.encode(each) for each in islice(value, _MAX_ITEMS)]]
            raise TypeError(f"a test cannot give the answer a value of {type(value)}")
        return self._mine(value)

    def _encode_instance(self, value: object) -> Wire:
        name = type(value).__name__
        if isinstance(value, Enum):
            return ["member", name, value.name]
        if isinstance(value, tuple):
            return ["named tuple", name, [self.encode(each) for each in value]]
        return ["instance", name, self._encode_items(vars(value))]

    def _mine(self, value: object) -> Wire:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects[number] = value
        return ["mine", number]

    def _encode_items(self, mapping: Mapping[Any, Any]) -> list[Wire]:
        return [[self.encode(key), self.encode(value)] for key, value in mapping.items()]

    def decode(self, wire: Wire) -> Value:
        """Return the value of what ``encode`` made.

        Raises:
            Exception: Of any kind, where it was made by something else.
        """
        if not isinstance(wire, list):
            return wire
        kind, *content = wire
        return _DECODERS[kind](self, *content)

    def decode_items(self, items: Wire) -> dict[Any, Any]:
        """Return a mapping from a list of [key, value]."""
        return {self.decode(key): self.decode(value) for key, value in items}

    def decode_instance(self, name: str, items: Wire) -> object:
        """Return an instance of a class of ``setup``, without running its constructor."""
        kind = self._known_class(name)
        instance = object.__new__(kind)
        attributes = self.decode_items(items)
        # Nothing that the answer made may stand in for a method of the class.
        if self._is_judge and any(callable(getattr(kind, each, None)) for each in attributes):
            raise TypeError(name)
        vars(instance).update(attributes)
        return instance

    def decode_member(self, name: str, member: str) -> object:
        """Return a member of an enumeration of ``setup``."""
        return self._known_class(name)[member]

    def decode_named_tuple(self, name: str, items: Wire) -> object:
        """Return an instance of a class of ``setup`` that is a tuple."""
        return tuple.__new__(self._known_class(name), [self.decode(each) for each in items])

    def _known_class(self, name: str) -> Value:
        if name not in self.setup_classes:
            raise TypeError(name)
        return self._namespace[name]

    def decode_builtin(self, name: str) -> object:
        """Return a builtin function or type."""
        found = getattr(builtins, name)
        if self._is_judge and not isinstance(found, type):
            raise TypeError(name)
        return found

    def own(self, number: int) -> object:
        """Return an object of this side by the number that the other side knows it by."""
        return self._objects[number] if number != ROOT else None

    def remote(self, number: int) -> RemoteObject:
        """Return what stands for an object of the other side, the same for the same object."""
        return self._remote.setdefault(number, RemoteObject(self, number))


_Encode = Callable[[Peer, Any], list[Wire]]


def _encode_all(peer: Peer, values: Iterable[Value]) -> list[Wire]:
    return [[peer.encode(each) for each in values]]


# What is changed in place crosses back; of a subclass its content does.
_MUTABLE: tuple[type, ...] = (list, bytearray, deque, dict, set)
# Of these types exactly: with a subclass might come methods.
_EXACT_ENCODERS: dict[type, tuple[str, _Encode]] = {
    Counter: ("counter", lambda peer, value: [peer._encode_items(value)]),
    OrderedDict: ("ordered", lambda peer, value: [peer._encode_items(value)]),
    date: ("date", lambda _, value: [value.isoformat()]),
    datetime: ("datetime", lambda _, value: [value.isoformat()]),
    time: ("time", lambda _, value: [value.isoformat()]),
    timedelta: ("timedelta", lambda _, value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", lambda _, value: [str(value)]),
    Fraction: ("fraction", lambda _, value: [hex(value.numerator), hex(value.denominator)]),
}
_ENCODERS: tuple[tuple[str, Any, _Encode], ...] = (
    ("list", list, _encode_all),
    ("tuple", tuple, _encode_all),
    ("dict", dict, lambda peer, value: [peer._encode_items(value)]),
    ("set", (set, type({}.keys())), _encode_all),
    ("frozenset", frozenset, _encode_all),
    ("deque", deque, _encode_all),
    ("bytes", bytes, lambda _, value: [value.decode("latin-1")]),
    ("bytearray", bytearray, lambda _, value: [value.decode("latin-1")]),
    ("complex", complex, lambda _, value: [value.real, value.imag]),
    ("range", range, lambda peer, value: [peer.encode((value.start, value.stop, value.step))]),
    ("module", types.ModuleType, lambda _, value: [value.__name__]),
)


def _decode_all(make: Callable[[list[Any]], object]) -> Callable[[Peer, Wire], object]:
    return lambda peer, values: make([peer.decode(each) for each in values])


def _import(_: Peer, name: str) -> types.ModuleType:
    # No submodules: unittest.mock.ANY, which equals everything, is in one.
    if name not in sys.stdlib_module_names:
        raise ImportError(name)
    return importlib.import_module(name)


_DECODERS: dict[str, Callable[..., Any]] = {
    "list": _decode_all(list),
    "tuple": _decode_all(tuple),
    "set": _decode_all(set),
    "frozenset": _decode_all(frozenset),
    "deque": _decode_all(deque),
    "iterator": _decode_all(iter),
    "dict": Peer.decode_items,
    "bytes": lambda _, text: text.encode("latin-1"),
    "bytearray": lambda _, text: bytearray(text, "latin-1"),
    "complex": lambda _, real, imag: complex(real, imag),
    "range": lambda peer, bounds: range(*peer.decode(bounds)),
    "int": lambda _, digits: int(digits, 16),
    "counter": lambda peer, items: Counter(peer.decode_items(items)),
    "ordered": lambda peer, items: OrderedDict(peer.decode_items(items)),
    "date": lambda _, text: date.fromisoformat(text),
    "datetime": lambda _, text: datetime.fromisoformat(text),
    "time": lambda _, text: time.fromisoformat(text),
    "timedelta": lambda _, days, seconds, micros: timedelta(days, seconds, micros),
    "decimal": lambda _, text: Decimal(text),
    "fraction": lambda _, over, under: Fraction(int(over, 16), int(under, 16)),
    "module": _import,
    "instance": Peer.decode_instance,
    "member": Peer.decode_member,
    "named tuple": Peer.decode_named_tuple,
    "builtin": Peer.decode_builtin,
    "mine": Peer.remote,
    "yours": Peer.own,
}


def _describe(error: Exception) -> str:
    try:
        # str() of a KeyError quotes its text.
        text = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else error
        return str(text)[:1000]
    except Exception:  # noqa: BLE001 the answer's own class may do anything here
        return ""
