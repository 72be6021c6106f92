r"""Reads numbers in tidied text: ``1,234.5``, ``3/4``, ``\frac{1}{2}``, ``1 1/2``, ``3 * 10^4``."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Quantity", "evaluate", "find_lone", "find_quantities"]

_RELATIVE_TOLERANCE = 1e-6
_MAX_EXACT = 2.0**53  # of a float that is an integer
# Nobody nests deeper; a model that does has written no number.
_MAX_DEPTH = 20
_FLAGS = re.ASCII | re.IGNORECASE

_DIGITS = r"(?=\.?\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<=\d)|\.\d+)(?:e[-+]?\d+)?"
_NUMBER = re.compile(_DIGITS, _FLAGS)
_MACRO = r"\\(?:frac|sqrt|pi)(?![a-z])"
# Where a number may begin: digits that do not end a word or a name, such as x2, and are not the
# second of 3:45. A sign counts where it cannot be a minus between two terms. What is passed over
# as a whole, without ``start``, is an exponent or an index of what is no number, as in cm^2.
_NEXT = re.compile(
    r"[\^_]\s*(?:\{[^{}]*\}|[-+]?\w+)"
    rf"|(?P<start>(?:(?<![\w)\]}}.])[-+])?(?:(?<![\w.])(?<!\d:)(?=\.?\d)|(?={_MACRO})))",
    _FLAGS,
)
_SIGN = re.compile(r"\s*([-+])\s*")
_POWER = re.compile(r"\s*\^\s*")
_TIMES_POWER_OF_TEN = re.compile(r"\s*[*x]\s*(?=10\s*\^)", _FLAGS)
_OVER_NUMBER = re.compile(rf"\s*/\s*(?=\.?\d|{_MACRO})", _FLAGS)
_MIXED = re.compile(r"\s+(?=\d+\s*/\s*\d)|\s*(?=\\frac(?![a-z]))", _FLAGS)
_TIMES_MACRO = re.compile(r"\s*(?=\\(?:sqrt|pi)(?![a-z]))", _FLAGS)
_TIMES = re.compile(r"\s*([*/])\s*|(?=[({])")
_SCALE = re.compile(r"\s*(?:(%|per ?cent\b)|(thousand|million|billion|trillion)\b)", _FLAGS)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_MACRO_NAME = re.compile(r"\\(frac|sqrt|pi)(?![a-z])\s*", _FLAGS)
_ROOT_DEGREE = re.compile(r"\[\s*([1-9]\d?)\s*\]\s*")
_DIGIT = re.compile(r"\s*\d", _FLAGS)
_OPENING = re.compile(r"\s*([({])\s*")
# A fraction or a root of something unknown: the numbers in it are not its own.
_UNREAD = re.compile(r"[-+]?\\(?:frac|sqrt)(?:\s*\{(?:[^{}]|\{[^{}]*\})*\}){1,2}", _FLAGS)
_SECOND_OF_TIME = re.compile(r":\d", _FLAGS)
# Terms of a sum with a variable: 2x - 7 has no number of its own.
_NEAR = 20
_TERM_BEFORE = re.compile(r"(?<![A-Za-z])[a-z]\s?(?:\^\s?\{?\w\}?)?\s?[-+]\s?\Z")
_TERM_AFTER = re.compile(r"[A-Za-z](?:\^\s?\{?\w\}?)?\s?[-+]\s?[\d(]")
# What may stand beside the number of a box: words, and letters that are units, not variables.
_WORD = r"[^\W\d_]{2,}"
_SYMBOL = r"(?:[mgshdlLJNWVAKCFT]|\u03a9)(?![^\W\d_])"
_JOINED = (
    r"(?:[kcm\u03bcn]?m|[km]?g|m?[lL]|mph|min|hrs?|h|s|ft|in|lbs?|oz|kWh?|[kM]?Hz|[ap]m|st|nd|rd"
    r"|th)"
)
_BEFORE = re.compile(
    rf"(?:[\s{{\"'~\[]|\([A-E]\)|\\color\s?\{{\w+\}}|(?:{_WORD})[\s:,.]|\\(?:math)?(?:bf|rm|it)(?![a-z]))*"
)
_AFTER = re.compile(
    rf"(?:_\s?(?:\{{\d+\}}|\d+)|{_JOINED}(?![^\W\d_]))?(?:[\s{{}}\"'~.,;:/\]]|\\(?:Omega|mu)(?![a-zA-Z])|-(?={_WORD})"
    rf"|(?<![^\W_])(?:{_WORD}|{_SYMBOL})|\((?:[^\W\d_]|\s)*\)"
    rf"|(?<=[^\W\d_])\s?(?:\^\s?(?:\{{-?\d\}}|-?\d)|\d(?!\d))|(?<=[^\W\d_])\*(?={_SYMBOL}))*"
)
_CLOSING = {"(": re.compile(r"\s*\)"), "{": re.compile(r"\s*\}")}


@dataclass(frozen=True)
class Quantity:
    """A number and what stands behind it.

    Attributes:
        value: The number itself; may be infinite.
        scale: 0.01 of a percent sign, 1e6 of the word million; else 1.
    """

    value: float
    scale: float = 1.0

    def equals(self, other: "Quantity") -> bool:
        """Whether both say the same; one may lack the sign: 50 % is 50, and .5.

        Integers must be equal, other numbers to a millionth.
        """
        mine, others = [self.value], [other.value]
        if self.scale != other.scale:
            mine.append(self.value * self.scale)
            others.append(other.value * other.scale)
        return any(_are_same(a, b) for a in mine for b in others)


def _are_same(a: float, b: float) -> bool:
    if a.is_integer() and b.is_integer() and abs(a) < _MAX_EXACT:
        return a == b
    return math.isclose(a, b, rel_tol=_RELATIVE_TOLERANCE)


def evaluate(text: str) -> Quantity | None:
    """Return what a tidied text says if it is a number or a calculation and nothing else."""
    text = text.strip(" \n\t.,;:")
    reader = _Reader(text, 0)
    try:
        value = reader.read_sum()
    except _NoNumberError:
        return None
    scale = reader.read_scale()
    return Quantity(value, scale) if reader.at == len(text) else None


def find_quantities(text: str) -> Iterator[Quantity]:
    """Yield the numbers of a tidied text, in order. Time is linear, whatever a model writes."""
    for quantity, start, end in _find_spans(text):
        if not (
            _TERM_BEFORE.search(text, max(0, start - _NEAR), start) or _TERM_AFTER.match(text, end)
        ):
            yield quantity


def find_lone(text: str) -> Quantity | None:
    """Return the number of a tidied text that is one with nothing beside it but words and units."""
    spans = list(_find_spans(text))
    if len(spans) != 1:
        return None
    quantity, start, end = spans[0]
    is_alone = _BEFORE.fullmatch(text[:start]) and _AFTER.fullmatch(text[end:])
    return quantity if is_alone else None


def _find_spans(text: str) -> Iterator[tuple[Quantity, int, int]]:
    at = 0
    while (found := _NEXT.search(text, at)) is not None:
        at = found.end()
        if found["start"] is None:
            continue
        reader = _Reader(text, found.start())
        try:
            value = reader.read_signed()
        except _NoNumberError:
            unread = _UNREAD.match(text, found.start())
            at = max(at + 1, reader.at, unread.end() if unread else 0)
            continue
        at = reader.at
        if not _SECOND_OF_TIME.match(text, at):
            quantity = Quantity(value, reader.read_scale())
            yield quantity, found.start(), reader.at


class _NoNumberError(Exception):
    """There is none."""


class _Reader:
    """Reads calculations by recursive descent; every method reads on from ``at``."""

    def __init__(self, text: str, at: int) -> None:
        self.at = at
        self._text = text
        self._depth = 0

    def read_sum(self) -> float:
        """Read terms with plus and minus between them."""
        total = self._read_term()
        while (sign := self._take(_SIGN)) is not None:
            term = self._read_term()
            total += term if sign[1] == "+" else -term
        return total

    def read_signed(self) -> float:
        """Read what in running text is one number."""
        sign = self._take(_SIGN)
        value = self._read_quotient()
        return -value if sign is not None and sign[1] == "-" else value

    def read_scale(self) -> float:
        """Read the sign or word behind a number, if there is one."""
        found = self._take(_SCALE)
        if found is None:
            return 1.0
        return 0.01 if found[1] else _SCALES[found[2].lower()]

    def _read_term(self) -> float:
        value = self.read_signed()
        while (operator := self._take(_TIMES)) is not None:
            factor = self.read_signed()
            value = _divide(value, factor) if operator[1] == "/" else value * factor
        return value

    def _read_quotient(self) -> float:
        """Read a number with a power of ten behind it, perhaps over others."""
        value = self._read_factor()
        if self._take(_TIMES_POWER_OF_TEN):
            value *= self._read_factor()
        while self._take(_OVER_NUMBER):
            value = _divide(value, self._read_factor())
        return value

    def _read_factor(self) -> float:
        """Read an atom, perhaps to a power; or a number with a fraction, a root or pi behind it."""
        is_number = _NUMBER.match(self._text, self.at) is not None
        value = self._read_atom()
        if self._take(_POWER):
            sign = self._take(_SIGN)
            exponent = self._read_atom()
            return _raise(value, -exponent if sign is not None and sign[1] == "-" else exponent)
        before = self.at
        if is_number and self._take(_MIXED):
            part = self._read_atom()
            if self._take(_OVER_NUMBER):
                part = _divide(part, self._read_atom())
            if value.is_integer() and 0 < part < 1:
                return value + part
            self.at = before  # two numbers beside each other
        elif is_number and self._take(_TIMES_MACRO):
            return value * self._read_atom()
        return value

    def _read_atom(self) -> float:
        number = self._take(_NUMBER)
        if number is not None:
            return float(number[0].replace(",", ""))
        macro = self._take(_MACRO_NAME)
        if macro is None:
            return self._read_group()
        if macro[1] == "pi":
            return math.pi
        if macro[1] == "frac":
            above = self._read_part()
            return _divide(above, self._read_part())
        degree = self._take(_ROOT_DEGREE)
        return _raise(self._read_atom(), 1 / int(degree[1]) if degree else 0.5)

    def _read_part(self) -> float:
        r"""Read one of the two of a fraction, which may be a bare digit: ``\frac12``."""
        digit = self._take(_DIGIT)
        return float(digit[0]) if digit is not None else self._read_atom()

    def _read_group(self) -> float:
        opening = self._take(_OPENING)
        if opening is None or self._depth == _MAX_DEPTH:
            raise _NoNumberError
        self._depth += 1
        value = self.read_sum()
        self._depth -= 1
        if self._take(_CLOSING[opening[1]]) is None:
            raise _NoNumberError
        return value

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self.at)
        if found is not None:
            self.at = found.end()
        return found


def _divide(above: float, below: float) -> float:
    if not below:
        raise _NoNumberError
    return above / below


def _raise(base: float, exponent: float) -> float:
    try:
        value: object = base**exponent
    except ArithmeticError as error:  # beyond every float, or a power of zero
        raise _NoNumberError from error
    if not isinstance(value, float):  # a root of a negative number
        raise _NoNumberError
    return value
