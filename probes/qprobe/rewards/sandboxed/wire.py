"""How values cross between the two processes: as plain values, or by number.

Values of builtin types cross as plain values, whatever subclass they were of; an instance of a
class that ``setup`` defines crosses as its attributes and becomes one of the receiver's own class;
anything else stays where it is and the other side holds a ``RemoteObject``, as it does of what is
of a class that the tests themselves name.
"""

import builtins
import inspect
import io
import types
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Coroutine, Iterator, Mapping
from enum import Enum
from itertools import islice
from typing import Any, NoReturn

from .failures import Failures
from .instances import attributes_of, set_attributes
from .kinds import DECODERS, ENCODERS, EXACT_ENCODERS
from .remote import RemoteObject, number_of

__all__ = ["ROOT", "Codec"]

Wire = Any  # what JSON can say
Value = Any  # of whatever type can cross
_MAX_ITEMS = 100_000
_SMALL_INT = 1 << 62  # json reads and writes at most 4300 digits; hexadecimal knows no limit
# The namespace, whose items are the global names.
ROOT = 0


class Codec(ABC):
    """Makes JSON of values and values of JSON, and knows the objects that the sides share.

    Args:
        namespace: The global names of this side, which hold the classes that ``setup`` defines.
        is_judge: The judge takes no builtin function for a value: a message must not become code.

    Attributes:
        setup_classes: Names of the classes that ``setup`` defines.
        instance_attributes: What these set on their instances.
        tested_names: What the tests expect of the answer, on its side.
        is_unsupported: Whether a test did, or the answer asked for, what cannot be carried.
    """

    def __init__(self, namespace: dict[str, Any], *, is_judge: bool) -> None:
        self._namespace = namespace
        self._is_judge = is_judge
        # Kept alive, since the other side knows them by number.
        self._objects: dict[int, object] = {ROOT: namespace}
        self._numbers: dict[int, int] = {}  # of objects, by id()
        self._remote: dict[int, RemoteObject] = {}
        self.setup_classes: frozenset[str] = frozenset()
        self.instance_attributes: frozenset[str] = frozenset()
        self.tested_names: frozenset[str] = frozenset()
        self.is_unsupported = False
        self.failures = Failures(self)

    @abstractmethod
    def ask(
        self,
        operation: str,
        number: int,
        args: tuple[Value, ...] = (),
        kwargs: dict[str, Value] | None = None,
    ) -> Value:
        """Have the other side do something with one of its objects; raise what it raised."""

    @property
    def num_objects(self) -> int:
        """How many objects of the other side stay there, as far as this one knows."""
        return len(self._remote.keys() - {ROOT})

    def refuse(self, what: str) -> NoReturn:
        """Note that the exchange cannot carry what a test does, and raise TypeError."""
        self.is_unsupported = True
        raise TypeError(f"not supported by the sandbox: {what}")

    def class_of_setup(self, name: str) -> Value:
        """Return a class that ``setup`` defines, or None."""
        return self._namespace.get(name) if name in self.setup_classes else None

    def is_of_setup(self, value: object) -> bool:
        """Return whether a value is an instance of a class that ``setup`` defines."""
        name = type(value).__name__
        return name in self.setup_classes and self._namespace.get(name) is type(value)

    def _is_tested(self, value: object) -> bool:
        name = type(value).__name__
        return name in self.tested_names - self.setup_classes and self._namespace.get(name) is type(
            value
        )

    def encode(self, value: object) -> Wire:
        """Return a value in JSON: scalars as they are, all else as [kind, ...]."""
        if self._is_tested(value):
            return self._mine(value)
        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, int):
            return value if -_SMALL_INT < value < _SMALL_INT else ["int", hex(value)]
        if isinstance(value, RemoteObject):
            return ["yours", number_of(value)]
        if self.is_of_setup(value):
            return self._encode_instance(value)
        if type(value) in EXACT_ENCODERS:
            kind, encode = EXACT_ENCODERS[type(value)]
            return [kind, *encode(self, value)]
        if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
            return ["record", type(value).__name__, list(fields), [*map(self.encode, value)]]
        for kind, of, encode in ENCODERS:
            if isinstance(value, of):
                return [kind, *encode(self, value)]
        return self._encode_object(value)

    def _encode_object(self, value: object) -> Wire:
        if inspect.iscoroutine(value):
            return ["coroutine", self._mine(value)[1]]
        if isinstance(value, BaseException):
            return ["error", *self.failures.encode(value)]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self.failures.encode_class(value)
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            # The judge takes no function: the answer's max stays where it is.
            if self._is_judge or isinstance(value, type):
                return ["builtin", name]
        elif self._is_judge and not callable(value):
            if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
                return ["iterator", [self.encode(each) for each in islice(value, _MAX_ITEMS)]]
            self.refuse(f"a value of {type(value)}, given to the answer")
        return self._mine(value)

    def _encode_instance(self, value: object) -> Wire:
        name = type(value).__name__
        if isinstance(value, Enum):
            return ["member", name, value.name]
        if isinstance(value, tuple):
            return ["named tuple", name, [self.encode(each) for each in value]]
        return ["instance", name, self.encode_items(attributes_of(value))]

    def _mine(self, value: object) -> Wire:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects[number] = value
        return ["mine", number]

    def encode_items(self, mapping: Mapping[Any, Any]) -> list[Wire]:
        """Return a mapping as a list of [key, value]."""
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
        # What the answer made must not stand in for a method of the class, nor for a value of it.
        if self._is_judge and any(self._is_of_class(kind, each) for each in attributes):
            raise TypeError(name)
        set_attributes(instance, attributes)
        return instance

    def _is_of_class(self, kind: type, attribute: str) -> bool:
        """Return whether an attribute is the class's own, and not set by it on its instances."""
        if not hasattr(kind, attribute):
            return False
        value = inspect.getattr_static(kind, attribute)
        is_slot = isinstance(value, types.MemberDescriptorType)
        return callable(value) or not (is_slot or attribute in self.instance_attributes)

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

    def decode_record(self, name: str, fields: list[str], items: Wire) -> object:
        """Return a named tuple of a class that this side does not have."""
        return namedtuple(name, fields)(*map(self.decode, items))

    def decode_coroutine(self, number: int) -> Coroutine[Any, Any, object]:
        """Return a coroutine that has the other side complete its own."""

        async def complete() -> object:
            return self.ask("await", number)

        return complete()

    def own(self, number: int) -> object:
        """Return an object of this side by the number that the other side knows it by."""
        return self._objects[number] if number != ROOT else None

    def remote(self, number: int) -> RemoteObject:
        """Return what stands for an object of the other side, the same for the same object."""
        return self._remote.setdefault(number, RemoteObject(self, number))


_DECODERS: dict[str, Callable[..., Any]] = {
    **DECODERS,
    "dict": Codec.decode_items,
    "instance": Codec.decode_instance,
    "member": Codec.decode_member,
    "named tuple": Codec.decode_named_tuple,
    "record": Codec.decode_record,
    "coroutine": Codec.decode_coroutine,
    "error": lambda peer, *content: peer.failures.decode([*content], may_end=True),
    "class of errors": lambda peer, *content: peer.failures.decode_class([*content]),
    "builtin": Codec.decode_builtin,
    "mine": Codec.remote,
    "yours": Codec.own,
}
