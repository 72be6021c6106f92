"""Reads files of prompts. Knows rewards by their ``check`` only.

A file is JSON lines, one row a line. A row has exactly one of ``prompt`` (raw text) and
``messages`` (a chat); all of it is handed to the reward. It may bring its own completions:
``completions``, or the pair ``chosen`` and ``rejected`` in the forms that TRL documents.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, NoReturn

from qprobe.data.fields import read_text, show
from qprobe.data.layouts import LAYOUTS, Layout
from qprobe.data.split import check_split, has_split
from qprobe.errors import PromptFileError, RowError

__all__ = ["GivenCompletion", "PromptRow", "read_prompts"]

Json = dict[str, Any]


@dataclass(frozen=True)
class GivenCompletion:
    """A completion that came with its prompt.

    Attributes:
        text: May be empty.
        reward: Finite, or None: to be rewarded.
    """

    text: str
    reward: float | None


@dataclass(frozen=True)
class PromptRow:
    """One row of a file.

    Attributes:
        prompt: Raw text as ``/v1/completions`` takes it, or chat messages, each with ``role`` and
            ``content``; not empty.
        fields: The whole row, as rewards get it; of ``mbpp`` and ``humaneval``, the row that theirs
            was turned into.
        completions: What the row brought, if anything.
        line: 1-based number of its line, or of the item in a file that is one JSON array.
    """

    prompt: str | list[Json]
    fields: Json
    completions: tuple[GivenCompletion, ...] = ()
    line: int = dataclass_field(default=0, compare=False)


def read_prompts(
    path: Path,
    *,
    layout: Layout = "rows",
    needs_completions: bool = False,
    needs_rewards: bool = False,
    check: Callable[[Json], None] | None = None,
) -> list[PromptRow]:
    """Read a file; every row is checked before any is returned.

    Args:
        path: JSON lines, or one JSON array of rows; gzipped if it ends in ``.gz``.
        layout: ``rows``, or the published form of MBPP (``mbpp.jsonl``, ``sanitized-mbpp.json``) or
            HumanEval (``HumanEval.jsonl.gz``), whose rows become chats with ``tests`` and ``setup``
            for the reward ``tests``.
        needs_completions: Whether a row without completions is refused.
        needs_rewards: Whether a completion without a reward is refused.
        check: Called with the fields of each row, such as a reward's; raises RowError.

    Raises:
        PromptFileError: The file cannot be read, or a row is not valid; line, field and value are
            named.
    """
    rows = []
    for line, source in _read_objects(path):
        try:
            fields = LAYOUTS[layout](source)
            row = replace(_read_row(fields), line=line)
            if needs_completions and not row.completions:
                raise RowError("completions", "is missing, and so are chosen and rejected")
            if needs_rewards:
                _check_rewards(row)
            if check is not None:
                check(fields)
        except RowError as error:
            raise PromptFileError(path, line, error.field, error.message) from error
        rows.append(row)
    if not rows:
        raise PromptFileError(path, None, "file", "holds no rows")
    _check_splits(path, rows)
    return rows


def _check_splits(path: Path, rows: list[PromptRow]) -> None:
    if has_split([row.fields for row in rows]):
        for row in rows:
            try:
                check_split(row.fields)
            except RowError as error:
                raise PromptFileError(path, row.line, error.field, error.message) from error


def _check_rewards(row: PromptRow) -> None:
    for index, each in enumerate(row.completions):
        if each.reward is None:
            raise RowError(f"completions[{index}].reward", "is missing, and no reward was named")


def _read_objects(path: Path) -> Iterator[tuple[int, Json]]:
    if path.is_dir():
        raise PromptFileError(path, None, "file", "cannot be read: it is a folder")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise PromptFileError(path, None, "file", f"cannot be read: {error}") from error
    if data.lstrip()[:1] == b"[":
        yield from enumerate(_parse_array(path, data), 1)
        return
    for line, raw in enumerate(data.split(b"\n"), 1):
        if raw.strip():
            yield line, _parse(path, line, raw)


def _parse_array(path: Path, data: bytes) -> list[Json]:
    rows = _load(path, None, data)
    for item, row in enumerate(rows, 1):
        _check_is_object(path, item, row)
    return rows  # type: ignore[no-any-return]  # just checked


def _parse(path: Path, line: int, raw: bytes) -> Json:
    row = _load(path, line, raw)
    _check_is_object(path, line, row)
    return row  # type: ignore[no-any-return]  # just checked


def _load(path: Path, line: int | None, raw: bytes) -> Any:  # noqa: ANN401 JSON of any kind
    where = "file" if line is None else "row"
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise PromptFileError(path, line, where, f"is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise PromptFileError(
            path, line, where, f"is not JSON: {error}, got {show(raw.decode())}"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_is_object(path: Path, line: int, row: object) -> None:
    if not isinstance(row, dict):
        raise PromptFileError(path, line, "row", f"must be a JSON object, got {show(row)}")


def _read_row(fields: Json) -> PromptRow:
    has_pair = "chosen" in fields or "rejected" in fields
    if "prompt" in fields and "messages" in fields:
        raise RowError("messages", "must not stand beside 'prompt'")
    prompt: str | list[Json] | None = None
    if "messages" in fields:
        prompt = _read_chat("messages", fields["messages"])
    elif has_pair and isinstance(fields.get("prompt"), list):  # TRL's conversational form
        prompt = _read_chat("prompt", fields["prompt"])
    elif "prompt" in fields:
        prompt = read_text("prompt", fields["prompt"])
        if not prompt:
            raise RowError("prompt", "must not be empty, got ''")
    completions: tuple[GivenCompletion, ...] = ()
    if has_pair:
        if "completions" in fields:
            raise RowError("completions", "must not stand beside 'chosen' and 'rejected'")
        prompt, completions = _read_pair(fields, prompt)
    elif "completions" in fields:
        completions = _read_completions(fields["completions"])
    if prompt is None:
        raise RowError("prompt", "is missing, and so is messages")
    return PromptRow(prompt=prompt, fields=fields, completions=completions)


def _read_chat(field: str, value: object) -> list[Json]:
    if not isinstance(value, list) or not value:
        raise RowError(field, f"must be a non-empty list of messages, got {show(value)}")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise RowError(f"{field}[{index}]", f"must be an object, got {show(message)}")
        for name in ("role", "content"):
            if name not in message:
                raise RowError(f"{field}[{index}].{name}", f"is missing from {show(message)}")
            read_text(f"{field}[{index}].{name}", message[name])
        if not message["role"]:
            raise RowError(f"{field}[{index}].role", "must not be empty, got ''")
    return value


def _read_completions(value: object) -> tuple[GivenCompletion, ...]:
    if not isinstance(value, list) or not value:
        raise RowError("completions", f"must be a non-empty list, got {show(value)}")
    return tuple(_read_completion(f"completions[{i}]", each) for i, each in enumerate(value))


def _read_completion(field: str, value: object) -> GivenCompletion:
    if isinstance(value, str):
        return GivenCompletion(read_text(field, value), None)
    if not isinstance(value, dict):
        raise RowError(field, f"must be a string or an object, got {show(value)}")
    if "text" not in value:
        raise RowError(f"{field}.text", f"is missing from {show(value)}")
    for name in sorted(value.keys() - {"text", "reward"}):
        raise RowError(f"{field}.{name}", "is not a field of a completion: text, reward")
    text = read_text(f"{field}.text", value["text"])
    return GivenCompletion(text, _read_reward(f"{field}.reward", value.get("reward")))


def _read_reward(field: str, value: object) -> float | None:
    if value is None:
        return None
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
    if not math.isfinite(number):
        raise RowError(field, f"must be a finite number or null, got {show(value)}")
    return number


def _read_pair(
    fields: Json, prompt: str | list[Json] | None
) -> tuple[str | list[Json] | None, tuple[GivenCompletion, ...]]:
    """Return the prompt, which may be the start of the chats, and two completions."""
    texts = []
    befores: list[list[Json] | None] = []
    for field in ("chosen", "rejected"):
        if field not in fields:
            raise RowError(field, "is missing, but the other of the pair is there")
        value = fields[field]
        if isinstance(value, list):
            *before, last = _read_chat(field, value)
            if last["role"] != "assistant":
                raise RowError(
                    f"{field}[{len(before)}].role", f"must be 'assistant', got {last['role']!r}"
                )
            texts.append(last["content"])
            befores.append(before)
        else:
            texts.append(read_text(field, value))
            befores.append(None)
    if befores[0] != befores[1]:
        raise RowError("rejected", "must continue the same messages as 'chosen'")
    pair = (GivenCompletion(texts[0], 1.0), GivenCompletion(texts[1], 0.0))
    return _join(prompt, befores[0]), pair


def _join(prompt: str | list[Json] | None, before: list[Json] | None) -> str | list[Json] | None:
    """Return the prompt of a pair whose chats begin with ``before``; None: they are raw text."""
    if before is None:
        return prompt
    # Data sets often say the last user's message again as plain text, beside the chats.
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not before:
        return chat
    same = chat is None or chat == before or (isinstance(prompt, str) and chat == before[-1:])
    if not same:
        raise RowError("chosen", f"must continue the row's prompt, got {show(before)}")
    return before
