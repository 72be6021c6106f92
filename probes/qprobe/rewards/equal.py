"""Which completions give the same answer: by number, pattern, JSON or text."""

import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol, TypeVar

from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.ending import read_quantity
from qprobe.rewards.json_answers import read_json
from qprobe.rewards.pattern import find_last
from qprobe.rewards.quantity import Quantity
from qprobe.rewards.sandboxed.blocks import after_reasoning

__all__ = [
    "READERS",
    "Classes",
    "Grouping",
    "group_json",
    "group_numbers",
    "group_texts",
    "make_regex",
    "number",
]

T = TypeVar("T")

# Characters of an answer that are shown to a person.
_SHOWN = 200


@dataclass(frozen=True)
class Classes:
    """Completions by their answers.

    Attributes:
        of: The class of each, numbered from 0 in order of their first members; NO_CLASS without an
            answer.
        answers: What each class says, for a person: cut short.
        notice: Something that one must know of them, or None.
    """

    of: list[int]
    answers: list[str]
    notice: str | None = None


class Grouping(Protocol):
    """Puts the completions of a prompt into classes of equal answers. Blocks."""

    def __call__(self, completions: Sequence[str]) -> Classes:
        """Return their classes."""


def group_numbers(completions: Sequence[str]) -> Classes:
    """Group by the number that a completion ends in, as the reward ``numeric`` reads and compares.

    One that equals two others makes them equal: with 50 % the answers 50 and 0.5 are one.
    """
    found = [read_quantity(each) for each in completions]
    distinct = list(dict.fromkeys(each for each in found if each is not None))
    first: dict[Quantity, Quantity] = {}  # of each its class's
    for each in distinct:
        equal = {first[other] for other in first if each.equals(other)}
        head = next((other for other in first.values() if other in equal), each)
        first |= {other: head for other, old in first.items() if old in equal}
        first[each] = head
    return number(found, lambda each: first[each], _show_quantity)


def _show_quantity(quantity: Quantity) -> str:
    return f"{quantity.value:.12g}" + (f" * {quantity.scale:g}" if quantity.scale != 1 else "")


def make_regex(pattern: str, *, stop: Event | None = None) -> Grouping:
    """Return what groups by what a pattern finds (``find_last``), white space around it aside.

    Args:
        pattern: Passes ``check_pattern``.
        stop: Ends a search, as in ``find_last``.
    """

    def group(completions: Sequence[str]) -> Classes:
        values = [each.value for each in find_last(pattern, completions, stop=stop)]
        return number([(value or "").strip() or None for value in values], str, str)

    return group


def group_texts(completions: Sequence[str]) -> Classes:
    """Group by the whole text without its reasoning part, in Unicode's NFC.

    Any white space counts as one space, and none at the ends; letters' case counts.
    """
    texts = [unicodedata.normalize("NFC", after_reasoning(each)) for each in completions]
    return number([" ".join(text.split()) or None for text in texts], str, str)


def group_json(completions: Sequence[str]) -> Classes:
    """Group by the JSON value that a completion gives, or by the tools that it calls."""
    return number([read_json(each) for each in completions], lambda each: each.key, str)


# What needs nothing but the texts, by the name that requests and commands have for it.
READERS: Mapping[str, Grouping] = {
    "numeric": group_numbers,
    "json": group_json,
    "text": group_texts,
}


def number(
    answers: Sequence[T | None], key: Callable[[T], Hashable], show: Callable[[T], str]
) -> Classes:
    """Number the classes of answers whose keys are equal."""
    numbers: dict[Hashable, int] = {}
    shown: list[str] = []
    of = []
    for answer in answers:
        if answer is None:
            of.append(NO_CLASS)
            continue
        place = numbers.setdefault(key(answer), len(numbers))
        if place == len(shown):
            text = show(answer)
            shown.append(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
        of.append(place)
    return Classes(of, shown)
