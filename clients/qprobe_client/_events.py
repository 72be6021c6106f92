"""Server-sent events out of bytes that come in pieces.

By the HTML standard, 9.2.6. httpx's ``iter_lines`` does not do: it also ends lines at U+2028,
U+0085 and others, which JSON carries unescaped.
"""

import re
from collections.abc import Iterator

__all__ = ["EventDecoder"]

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventDecoder:
    """Turns pieces of a stream into the data of its events; comments and other fields are dropped.

    Pieces may end anywhere: within a line, a character, or CRLF. Only whole lines are decoded.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[str] = []
        self._is_after_cr = False
        self._is_first = True

    def feed(self, piece: bytes) -> Iterator[str]:
        """Take the next piece, and give the data of each event that ends in it."""
        if self._is_after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._is_after_cr = False
        if not piece:
            return
        self._is_after_cr = piece.endswith(b"\r")
        *ends, rest = _LINE_END.split(piece)
        for end in ends:
            line = b"".join([*self._line, end])
            self._line = []
            yield from self._take(line)
        if rest:
            self._line.append(rest)

    def _take(self, line: bytes) -> Iterator[str]:
        if self._is_first:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first = False
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        elif self._data:
            data, self._data = "\n".join(self._data), []
            yield data
