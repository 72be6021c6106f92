"""The builtin types, and a few of the library, whose values cross as plain ones."""

import importlib
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

__all__ = ["DECODERS", "ENCODERS", "EXACT_ENCODERS", "MUTABLE"]

Wire = Any  # what JSON can say
Value = Any  # of whatever type can cross


class _Codec(Protocol):
    def encode(self, value: object) -> Wire: ...
    def decode(self, wire: Wire) -> Value: ...
    def encode_items(self, mapping: Mapping[Any, Any]) -> list[Wire]: ...
    def decode_items(self, items: Wire) -> dict[Any, Any]: ...


_Encode = Callable[[_Codec, Any], list[Wire]]


def _encode_all(peer: _Codec, values: Iterable[Value]) -> list[Wire]:
    return [[peer.encode(each) for each in values]]


# What is changed in place crosses back; of a subclass its content does.
MUTABLE: tuple[type, ...] = (list, bytearray, deque, dict, set)
# Of these types exactly: with a subclass might come methods.
EXACT_ENCODERS: dict[type, tuple[str, _Encode]] = {
    defaultdict: (
        "defaults",
        lambda peer, value: [peer.encode(value.default_factory), peer.encode_items(value)],
    ),
    Counter: ("counter", lambda peer, value: [peer.encode_items(value)]),
    OrderedDict: ("ordered", lambda peer, value: [peer.encode_items(value)]),
    date: ("date", lambda _, value: [value.isoformat()]),
    datetime: ("datetime", lambda _, value: [value.isoformat()]),
    time: ("time", lambda _, value: [value.isoformat()]),
    timedelta: ("timedelta", lambda _, value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", lambda _, value: [str(value)]),
    Fraction: ("fraction", lambda _, value: [hex(value.numerator), hex(value.denominator)]),
}
ENCODERS: tuple[tuple[str, Any, _Encode], ...] = (
    ("list", list, _encode_all),
    ("tuple", tuple, _encode_all),
    ("dict", dict, lambda peer, value: [peer.encode_items(value)]),
    ("set", (set, type({}.keys())), _encode_all),
    ("frozenset", frozenset, _encode_all),
    ("deque", deque, _encode_all),
    ("bytes", bytes, lambda _, value: [value.decode("latin-1")]),
    ("bytearray", bytearray, lambda _, value: [value.decode("latin-1")]),
    ("complex", complex, lambda _, value: [value.real, value.imag]),
    ("range", range, lambda peer, value: [peer.encode((value.start, value.stop, value.step))]),
    ("module", types.ModuleType, lambda _, value: [value.__name__]),
)


def _decode_all(make: Callable[[list[Any]], object]) -> Callable[[_Codec, Wire], object]:
    return lambda peer, values: make([peer.decode(each) for each in values])


def _import(_: _Codec, name: str) -> types.ModuleType:
    # No submodules: unittest.mock.ANY, which equals everything, is in one.
    if name not in sys.stdlib_module_names:
        raise ImportError(name)
    return importlib.import_module(name)


DECODERS: dict[str, Callable[..., Any]] = {
    "list": _decode_all(list),
    "tuple": _decode_all(tuple),
    "set": _decode_all(set),
    "frozenset": _decode_all(frozenset),
    "deque": _decode_all(deque),
    "iterator": _decode_all(iter),
    "bytes": lambda _, text: text.encode("latin-1"),
    "bytearray": lambda _, text: bytearray(text, "latin-1"),
    "complex": lambda _, real, imag: complex(real, imag),
    "range": lambda peer, bounds: range(*peer.decode(bounds)),
    "int": lambda _, digits: int(digits, 16),
    "defaults": lambda peer, factory, items: defaultdict(
        peer.decode(factory), peer.decode_items(items)
    ),
    "counter": lambda peer, items: Counter(peer.decode_items(items)),
    "ordered": lambda peer, items: OrderedDict(peer.decode_items(items)),
    "date": lambda _, text: date.fromisoformat(text),
    "datetime": lambda _, text: datetime.fromisoformat(text),
    "time": lambda _, text: time.fromisoformat(text),
    "timedelta": lambda _, days, seconds, micros: timedelta(days, seconds, micros),
    "decimal": lambda _, text: Decimal(text),
    "fraction": lambda _, over, under: Fraction(int(over, 16), int(under, 16)),
    "module": _import,
}
