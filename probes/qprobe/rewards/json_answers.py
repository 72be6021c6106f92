"""Reads the JSON that a completion gives as its answer, or the calls of tools that it makes.

A model writes its calls in the form that it was trained on, and vLLM's parsers read them only after
the choice. Read here are, anywhere in the text and whatever tags are around them:

- objects with ``name`` and ``arguments`` or ``parameters``, alone, in a list, or under ``function``
  (Hermes, Qwen, Llama 3, Mistral, Granite, InternLM; what vLLM has a model write for ``required``);
- a name in a tag and JSON behind it: ``<function=NAME>{...}``, ``[TOOL_CALLS]NAME{...}`` with or
  without ``[ARGS]``, ``functions.NAME:0<|tool_call_argument_begin|>{...}`` (Llama, Mistral, Kimi);
- ``<function=NAME><parameter=KEY>VALUE</parameter></function>`` (Qwen3-Coder);
- at the beginning ``[NAME(KEY=VALUE), ...]``, a list of calls in Python (Llama 4).
"""

import ast
import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from qprobe.rewards.sandboxed.blocks import after_reasoning
from qprobe.rewards.sandboxed.statements import parse

__all__ = ["JsonAnswer", "read_json"]

Value = Any  # what JSON can say, numbers as Decimal; or a _Call

# How much looking for JSON may read, as a multiple of the text, and how often it may fail.
_MAX_WORK, _MAX_FAILURES = 16, 2_000
_MAX_PYTHON = 20_000
_OPENING = re.compile(r"[{\[]")
_BEFORE = 200
_NAME_BEFORE = re.compile(
    r"(?:<function=([\w.-]+)>|\[TOOL_CALLS\]\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?"
    r"|(?:functions\.)?([\w.-]+):\d+\s*<\|tool_call_argument_begin\|>)\s*\Z"
)
# Bounded, and without the "<" of a next tag: else tags that never end take quadratic time.
_XML_NAME = r"[^<>\s]{1,200}"
_XML_CALL = re.compile(
    rf"<function=({_XML_NAME})>\s*"
    rf"((?:<parameter={_XML_NAME}>(?:(?!</?parameter|</?function).)*</parameter>\s*)*)</function>",
    re.DOTALL,
)
_XML_PARAMETER = re.compile(rf"<parameter=({_XML_NAME})>(.*?)</parameter>", re.DOTALL)
_PYTHON_CALLS = re.compile(
    r"(?:<\|python_start\|>)?\s*(\[\s*[A-Za-z_][\w.]*\(.*\)\s*\])", re.DOTALL
)


@dataclass(frozen=True)
class JsonAnswer:
    """An answer in JSON.

    Attributes:
        key: Equal for equal values.
        text: The value, for a person.
    """

    key: Hashable
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: Value


def read_json(completion: str) -> JsonAnswer | None:
    """Return what a completion gives; None without JSON.

    It is the calls of tools in their order, if there are any; else the whole text, if that is JSON;
    else the last object or array in it. A reasoning part does not count. The order of an object's
    names does not matter, nor how a number or a string is written: 1, 1.0 and 1e0 are one.
    """
    text = after_reasoning(completion).strip()
    try:
        calls: list[_Call] = [_read_xml_call(found) for found in _XML_CALL.finditer(text)]
        values = [] if calls else _read_values(text)
        calls = calls or [call for each in values for call in _read_calls(each)]
        calls = calls or _read_python_calls(text)
        answer: Value = calls or (values[-1] if values else None)
        is_there = bool(calls or values)
        return JsonAnswer(_key(answer), _write(answer)) if is_there else None
    except RecursionError:  # nobody nests as deep
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not of JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse)


def _read_values(text: str) -> list[Value]:
    try:
        return [_DECODER.decode(text)]
    except (ValueError, ArithmeticError):
        return list(_find_values(text))


def _find_values(text: str) -> Iterator[Value]:
    """Yield the objects and arrays in a text, as calls where a tag before them gives a name."""
    at, left = 0, _MAX_WORK * len(text)
    least = left // _MAX_FAILURES + 1  # to say where it fails takes time, too
    while left > 0 and (opening := _OPENING.search(text, at)) is not None:
        start = opening.start()
        try:
            value, at = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            at, left = start + 1, left - max(error.pos - start, least)
        except (ValueError, ArithmeticError, RecursionError):
            at, left = start + 1, left - len(text)
        else:
            before = _NAME_BEFORE.search(text[max(0, start - _BEFORE) : start])
            name = next(filter(None, before.groups())) if before else None
            yield value if name is None else _Call(name, value)


def _read_calls(value: Value) -> list[_Call]:
    """Return the calls that a value is, none if it is something else."""
    if isinstance(value, _Call):
        return [value]
    if isinstance(value, list):
        found = [_read_calls(each) for each in value]
        return [call for each in found for call in each] if all(found) else []
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # as OpenAI has them
        arguments = _parse_or_text(arguments)
    return [_Call(name, arguments)] if isinstance(name, str) and isinstance(arguments, dict) else []


def _read_xml_call(found: re.Match[str]) -> _Call:
    given = _XML_PARAMETER.findall(found[2])
    return _Call(found[1], {name: _parse_or_text(text.strip()) for name, text in given})


def _parse_or_text(text: str) -> Value:
    try:
        return _DECODER.decode(text)
    except (ValueError, ArithmeticError):
        return text


def _read_python_calls(text: str) -> list[_Call]:
    found = _PYTHON_CALLS.match(text)
    tree = parse(found[1]) if found is not None and len(found[1]) <= _MAX_PYTHON else None
    statement = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.List):
        return []
    calls = []
    for each in statement.value.elts:
        if not isinstance(each, ast.Call) or each.args:
            return []
        try:
            given = {str(one.arg): ast.literal_eval(one.value) for one in each.keywords}
            calls.append(_Call(ast.unparse(each.func), _DECODER.decode(json.dumps(given))))
        except (ValueError, TypeError):
            return []
    return calls


def _key(value: Value) -> Hashable:
    if isinstance(value, _Call):
        return ("call", value.name, _key(value.arguments))
    if isinstance(value, dict):
        return ("object", frozenset((name, _key(each)) for name, each in value.items()))
    if isinstance(value, list):
        return ("array", *map(_key, value))
    # True is no number.
    return (type(value).__name__, value)


def _write(value: Value) -> str:
    if isinstance(value, _Call):
        return f"{value.name}({_write(value.arguments)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_write(k)}: {_write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_write, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)
