"""What the value of a flag may be; argparse names the flag when it is not."""

import json
import math
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qprobe.errors import DatasetError
from qprobe.probe.reading import Reading
from qprobe.probe.values import NUMBERS, Layer

if TYPE_CHECKING:
    from qprobe.probe.schedule import Schedule

__all__ = [
    "count",
    "counts",
    "file",
    "folder",
    "header_name",
    "layer",
    "layers",
    "names",
    "number_names",
    "numbers",
    "origins",
    "reading",
    "readings",
    "schedule",
    "seconds",
    "windows",
]

_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")  # RFC 9110, section 5.6.2


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def header_name(text: str) -> str:
    """Read the name of an HTTP header."""
    if not _HEADER_NAME.fullmatch(text):
        raise ArgumentTypeError(f"must be a header's name, got {text!r}")
    return text


def origins(text: str) -> list[str]:
    """Read a JSON list of origins of pages, as vLLM's flag of that name takes it."""
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    if not isinstance(read, list) or not all(isinstance(each, str) for each in read):
        raise ArgumentTypeError(
            f"must be a JSON list such as '[\"https://a.example\"]', got {text!r}"
        )
    return read


def counts(text: str) -> tuple[int, ...]:
    """Read counts with commas between them."""
    return tuple(count(each) for each in text.split(","))


def windows(text: str) -> tuple[int, ...]:
    """Read numbers of tokens, in whatever order; there may be none."""
    return tuple(sorted({count(each) for each in text.split(",") if each}))


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise ArgumentTypeError(f"must be numbers such as 1,10, got {text!r}") from error


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    return tuple(text.split(","))


def layer(text: str) -> Layer:
    """Read a layer: a number or ``final``."""
    return "final" if text == "final" else count(text)


def layers(text: str) -> list[Layer]:
    """Read layers with commas between them."""
    return [layer(each) for each in text.split(",")]


def number_names(text: str) -> tuple[str, ...]:
    """Read which numbers a probe reads: ``all``, ``none``, or names with commas between them."""
    if text == "all":
        return NUMBERS
    found = () if text == "none" else names(text)
    for each in found:
        if each not in NUMBERS:
            raise ArgumentTypeError(
                f"must be all, none or some of {','.join(NUMBERS)}, got {each!r}"
            )
    return found


def reading(text: str) -> Reading:
    """Read one reading."""
    try:
        return Reading.parse(text)
    except DatasetError as error:
        raise ArgumentTypeError(str(error)) from error


def readings(text: str) -> list[Reading]:
    """Read readings with commas between them."""
    return [reading(each) for each in text.split(",")]


def schedule(text: str) -> 'Schedule | Literal["default"]':
    """Read a schedule, ``default`` or ``off``."""
    from qprobe.probe.schedule import Step, check_schedule

    if text == "default":
        return "default"
    if text == "off":
        return ()
    steps = []
    for part in text.split(","):
        tokens, colon, keep = part.partition(":")
        if not (colon and tokens.isdecimal() and keep.isdecimal()):
            raise ArgumentTypeError(
                f"must be 'default', 'off' or pairs of tokens and keep such as 16:8,32:4, "
                f"got {text!r}"
            )
        steps.append(Step(int(tokens), int(keep)))
    try:
        check_schedule(steps)
    except ValueError as error:
        place, said = error.args
        raise ArgumentTypeError(f"{place} {said}, in {text!r}") from error
    return tuple(steps)


def file(text: str) -> Path:
    """Read the path of a file that is there."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"must be a file, and {text!r} is a folder")
    if not path.exists():
        raise ArgumentTypeError(f"must be a file, and {text!r} is not there")
    return path


def folder(text: str) -> Path:
    """Read the path of a folder, which need not be there."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"must be a folder, and {text!r} is a file")
    return path
