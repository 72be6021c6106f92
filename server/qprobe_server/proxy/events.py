"""Server-sent events as bytes and back. A stream is read when all of it is there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["HALF_PAIRS", "Event", "read_events"]

# As JSON says half a surrogate pair, which UTF-8 cannot.
HALF_PAIRS = "backslashreplace"

# Not what ``str.splitlines`` splits at: JSON may hold U+2028 and the like as they are.
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        name: Of its field ``event``; empty where it has none.
        data: Of its fields ``data``, joined by line feeds.
    """

    name: str
    data: str

    def dump(self) -> bytes:
        """Return it as it is sent."""
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode(errors=HALF_PAIRS)


def read_events(raw: bytes) -> Iterator[Event]:
    """Give the events of a stream that has data, one at a time; one that was cut off is none.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
    """
    name = ""
    data: list[str] = []
    text = raw.decode("utf-8-sig")
    begin = 0
    for end in _LINE_END.finditer(text):
        line = text[begin : end.start()]
        begin = end.end()
        if not line:
            if any(data):  # else the standard has it that nothing happens
                yield Event(name, "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")  # a comment has no field's name
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
