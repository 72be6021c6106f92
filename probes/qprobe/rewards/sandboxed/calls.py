"""What calls of the answer's functions give, so that it can be compared with another answer's.

Runs where the tests run: values have come as plain ones, and nothing of the answer's is asked. They
are equal as ``==`` has it, numbers of any type by their exact value; an instance of a class of
``setup`` is equal to one with equal attributes.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Number
from typing import Any

from .failures import is_of_sandbox
from .instances import attributes_of
from .remote import RemoteObject

__all__ = ["SETUP_MODULE", "evaluate"]

Json = Any
_MAX_TEXT = 200
# Which classes of ``setup`` say that they are of.
SETUP_MODULE = "answer"


class _NoValueError(Exception):
    """There is nothing to compare."""


def evaluate(
    calls: Iterable[str], namespace: dict[str, Any], *, names: Collection[str]
) -> list[Json]:
    """Return a key and a text for what each expression gives, and whether it was raised.

    Statements between them are run.

    A statement that raises is the last.

    Raises:
        Exception: The answer lacks one of the names, or asks for memory or what else the sandbox
            lacks, or gives what cannot be compared.
    """
    results = []
    for source in calls:
        expression = None
        try:
            expression = compile(source, "<call>", "eval")
        except SyntaxError:
            statement = compile(source, "<call>", "exec")
        try:
            if expression is None:
                exec(statement, namespace)
                continue
            value = eval(expression, namespace)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, NameError) else None
            is_limit = isinstance(error, MemoryError) or is_of_sandbox(error)
            if is_limit or (missing in names and missing not in namespace):
                raise
            kind = type(error).__name__
            results.append([_digest(["raised", kind]), f"raises {kind}"[:_MAX_TEXT], True])
            if expression is None:
                break
        else:
            results.append([_digest(["returned", _describe(value)]), _write(value), False])
    return results


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write(value: object) -> str:
    try:
        return repr(value)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001 a class of setup may say anything here
        return type(value).__name__


def _describe(value: Any) -> Json:  # noqa: ANN401 whatever the answer gave
    """Return JSON that is equal for equal values."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Enum):
        return ["member", type(value).__name__, value.name]
    if isinstance(value, Number):
        return _describe_number(value)
    for kinds, describe in _DESCRIBERS:
        if isinstance(value, kinds):
            return describe(value)
    return _describe_object(value)


def _describe_all(value: Iterable[Any]) -> list[Json]:
    return [_describe(each) for each in value]


def _describe_dict(value: dict[Any, Any]) -> Json:
    items = [[_describe(name), _describe(each)] for name, each in value.items()]
    return ["dict", sorted(items, key=json.dumps)]


_DESCRIBERS: tuple[tuple[Any, Callable[[Any], Json]], ...] = (
    (list, lambda value: ["list", _describe_all(value)]),
    (tuple, lambda value: ["tuple", _describe_all(value)]),
    (dict, _describe_dict),
    ((set, frozenset), lambda value: ["set", sorted(_describe_all(value), key=json.dumps)]),
    ((bytes, bytearray), lambda value: ["bytes", value.decode("latin-1")]),
    (deque, lambda value: ["deque", _describe_all(value)]),
    (range, lambda value: ["range", len(value), *([value[0], value[-1]] if value else [])]),
    ((date, time, timedelta), lambda value: [type(value).__name__, str(value)]),
    (BaseException, lambda value: ["error", type(value).__name__]),
    (type, lambda value: ["type", value.__name__]),
)


def _describe_number(value: Any) -> Json:  # noqa: ANN401 any number
    if isinstance(value, complex):
        if value.imag:
            return ["complex", _describe(value.real), _describe(value.imag)]
        value = value.real
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return ["number", "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"]
    exact = Fraction(value)
    return ["number", hex(exact.numerator), hex(exact.denominator)]


def _describe_object(value: Any) -> Json:  # noqa: ANN401 any other
    if hasattr(value, "tolist"):  # what a call made of numpy by itself
        return ["array", _describe(value.tolist())]
    if type(value).__module__ != SETUP_MODULE or isinstance(value, RemoteObject):
        raise _NoValueError
    return ["instance", type(value).__name__, _describe(attributes_of(value))]
