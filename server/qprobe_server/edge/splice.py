"""Changes single fields of JSON that vLLM has written, without reading all of it.

A reply may hold thousands of tokens with their logprobs, and a stream has an event for each token.
"""

import re

__all__ = ["add_field", "find_value", "replace_value"]

# A string, whole, or what opens, closes and parts.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)


def find_value(data: bytes, path: tuple[bytes, ...]) -> tuple[int, int] | None:
    """Find a value in a JSON object.

    Args:
        data: The object.
        path: Keys of objects within objects, such as ``(b"response", b"model")``.

    Returns:
        Where the value begins and ends, white space included; None if it is not there.
    """
    keys = [b'"' + key + b'"' for key in path]
    depth = 0  # of the objects and lists that are open
    matched = 0  # keys of the path that lead here
    begin = -1
    last = b""
    for match in _TOKEN.finditer(data):
        token = match[0]
        if begin >= 0 and depth == len(keys) and token in (b",", b"}"):
            return begin, match.start()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth < matched:
                return None  # the object that would hold it has ended
        elif token == b"," and begin < 0 < depth == matched:
            return None  # what should hold it is no object
        elif token == b":" and begin < 0 and depth == matched + 1 and last == keys[matched]:
            matched += 1
            if matched == len(keys):
                begin = match.end()
        last = token
    return None


def replace_value(data: bytes, path: tuple[bytes, ...], value: bytes) -> bytes:
    """Put other JSON in the place of a value, if it is there; see ``find_value``."""
    found = find_value(data, path)
    return data if found is None else data[: found[0]] + value + data[found[1] :]


def add_field(data: bytes, name: bytes, value: bytes, *, end: bytes = b"}") -> bytes:
    """Add a field to a JSON object that has others.

    Args:
        data: The object, or an object that holds it.
        name: Of the field.
        value: JSON.
        end: The closing brace of the object and what comes after it; of several the last counts.

    Raises:
        ValueError: There is no such end.
    """
    place = data.rindex(end)
    return data[:place] + b',"' + name + b'":' + value + data[place:]
