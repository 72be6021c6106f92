"""How the process that judges and the one that holds the answer call each other: by value.

Two peers exchange JSON over two pipes; one asks, the other serves, and serving may ask back. What
crosses and how is in ``wire``. Nothing that the answer made is ever executed, compared or printed
by the judge: an ``__eq__`` of its own decides nothing but what a test asks it for.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from .instances import attributes_of, set_attributes
from .kinds import MUTABLE
from .operations import OPERATIONS
from .wire import ROOT, Codec

__all__ = ["ROOT", "Peer"]

Wire = Any  # what JSON can say
Value = Any  # of whatever type can cross
_MAX_MESSAGE_BYTES = 16 << 20


class Peer(Codec):
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
        super().__init__(namespace, is_judge=is_judge)
        self._reader = reader
        self._writer = writer
        self._at_end = at_end
        # What the answer has printed since it last said so.
        self.take_output: Callable[[], str] = str

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
        kind, *content, output = self.serve(until_reply=True)
        if output:
            sys.stdout.write(output)
        if kind == "error":
            raise self.failures.decode(content, may_end=operation in ("next", "anext"))
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
                self._send_reply(self._reply(*message[1:]))
            elif until_reply:
                return message
            else:
                self._at_end()

    def _send_reply(self, reply: list[Wire]) -> None:
        try:
            self.send(reply)
        except ValueError as error:
            *content, _ = self.failures.encode(error)
            self.send(["error", *content, self.is_unsupported, ""])

    def _reply(self, operation: str, number: int, args: Wire, kwargs: Wire) -> list[Wire]:
        if self._is_judge and (operation not in ("bool", "call", "await") or number == ROOT):
            # An honest answer may ask for an attribute, too, but then it can ask for any.
            self.is_unsupported = True
            self._at_end()
        try:
            positional, named = self.decode(args), self.decode(kwargs)
            given = [*positional, *named.values()]
            before = [*args[1], *(value for _, value in kwargs[1])]
            value = OPERATIONS[operation](self._objects[number], *positional, **named)
            result = [self._encode_result(value, given), self._changes(given, before)]
            return ["value", *result, self.take_output()]
        except (Exception, SystemExit) as error:  # noqa: BLE001 the asker gets it, whatever it is
            # A test's own function has found a mistake, which the answer must not swallow.
            if self._is_judge and isinstance(error, AssertionError):
                self._at_end()
            return ["error", *self.failures.encode(error), self.take_output()]

    def _encode_result(self, value: object, given: list[object]) -> Wire:
        """Encode a result, or say which argument it is: tests may ask whether it is the same."""
        for index, each in enumerate(given):
            if each is value and self._is_mutable(each):
                return ["argument", index]
        return self.encode(value)

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
        return isinstance(value, MUTABLE) or self.is_of_setup(value)

    def _replace_content(self, target: Value, source: Value) -> None:
        """Make a container, or an instance, equal to another of its type, in place."""
        alike = [kind for kind in MUTABLE if isinstance(target, kind)] or [type(target)]
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
            set_attributes(target, attributes_of(source))

    def send(self, message: list[Wire]) -> None:
        """Write one message.

        Raises:
            ValueError: It is too long.
        """
        data = json.dumps(message).encode()
        if len(data) > _MAX_MESSAGE_BYTES:
            self.is_unsupported = True
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
