"""Reads files of prompts. Knows rewards by their ``check`` only.

A row has exactly one of ``prompt`` (raw text, or a chat) and ``messages`` (a chat); all of it is
handed to the reward. It may bring its own completions: ``completions``, or the pair ``chosen`` and
``rejected``. The forms of published data sets are turned into that by ``layouts``, ``preferences``,
``single`` and ``trees``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

from qprobe.data.chats import read_chat
from qprobe.data.columns import Columns
from qprobe.data.completions import GivenCompletion, read_completions
from qprobe.data.fields import read_text
from qprobe.data.layouts import LAYOUTS, Layout
from qprobe.data.preferences import read_pair
from qprobe.data.single import gather, read_single
from qprobe.data.source import Source, read_objects
from qprobe.data.split import check_split, has_split
from qprobe.data.trees import is_flat, is_tree, walk_flat, walk_tree
from qprobe.errors import PromptFileError, RowError

if TYPE_CHECKING:  # it imports us
    from qprobe.data.shots import Shot

__all__ = ["GivenCompletion", "PromptRow", "read_prompts", "read_row"]

Json = dict[str, Any]
Numbered = tuple[int, Json]
_AS_THEY_ARE = Columns()


@dataclass(frozen=True)
class PromptRow:
    """One row of a file.

    Attributes:
        prompt: Raw text as ``/v1/completions`` takes it, or chat messages as
            ``/v1/chat/completions`` takes them; not empty.
        fields: The whole row, as rewards get it; of published data sets, the row that theirs was
            turned into.
        completions: What the row brought, if anything.
        shots: What stands in the prompt before the row's own, if anything.
        line: 1-based number of its line, or of the row in a file that has no lines; of several rows
            that were joined, the first.
    """

    prompt: str | list[Json]
    fields: Json
    completions: tuple[GivenCompletion, ...] = ()
    shots: "tuple[Shot, ...]" = ()
    line: int = dataclass_field(default=0, compare=False)


def read_prompts(
    source: Source,
    *,
    layout: Layout = "rows",
    columns: Columns = _AS_THEY_ARE,
    subset: str | None = None,
    needs_completions: bool = False,
    needs_rewards: bool = False,
    check: Callable[[Json], None] | None = None,
) -> list[PromptRow]:
    """Read prompts; every row is checked before any is returned.

    Args:
        source: As ``read_objects`` takes it.
        layout: ``rows``, whose form is seen by their columns; or the published form of MBPP or
            HumanEval, also as EvalPlus has them, whose rows become chats with ``tests`` and
            ``setup`` for the reward ``tests``; with ``-raw`` text to go on with.
        columns: How the source names its columns and splits.
        subset: Of a data set that has several.
        needs_completions: Whether rows without completions are refused, and those of a single
            ``completion`` joined by their prompt.
        needs_rewards: Whether a completion without a reward is refused.
        check: Called with the fields of each row, such as a reward's; raises RowError.

    Raises:
        PromptFileError: The source cannot be read, or a row is not valid; line, field and value are
            named.
    """
    rows = []
    for line, fields in _find_rows(source, layout, columns, subset, needs_completions):
        with _located(source, line):
            made = replace(read_row(fields), line=line)
            if needs_completions and not made.completions:
                raise RowError("completions", "is missing, and so are chosen and rejected")
            if needs_rewards:
                _check_rewards(made)
            if check is not None:
                check(fields)
        rows.append(made)
    if not rows:
        raise PromptFileError(source, None, "file", "holds no rows")
    if has_split([each.fields for each in rows]):
        for each in rows:
            with _located(source, each.line):
                _check_split(each.fields)
    return rows


def _find_rows(
    source: Source,
    layout: Layout,
    columns: Columns,
    subset: str | None,
    needs_completions: bool,  # noqa: FBT001
) -> Sequence[Numbered]:
    """Return a source's rows as rows of ours, not yet checked."""
    found: list[Numbered] = []
    splits: set[str] = set()
    # Under another name the splits are those of a column, not of the data set.
    splits_read = columns.splits if columns.split == "split" else ()
    needs_split = bool(columns.splits or columns.test_splits)
    for line, given in read_objects(
        source, subset=subset, splits=splits_read, needs_split=needs_split
    ):
        with _located(source, line):
            if columns.takes(given):
                splits.add(str(given.get(columns.split)))
                row = columns.rename(given)
                found += [(line, each) for each in _open(row, layout, needs_completions)]
    with _located(source, None):
        columns.check_seen(splits)
        if found and is_flat(found[0][1]):
            found = walk_flat(found)
        return gather(found) if needs_completions else found


@contextmanager
def _located(source: Source, line: int | None) -> Iterator[None]:
    try:
        yield
    except RowError as error:
        raise PromptFileError(source, line, error.field, error.message) from error


def _open(row: Json, layout: Layout, needs_completions: bool) -> Sequence[Json]:  # noqa: FBT001
    """Return the rows of ours that a row is; a message of a flat tree stays what it is."""
    if layout == "rows" and is_flat(row):
        return [row]
    if layout == "rows" and is_tree(row):
        return list(walk_tree(row))
    made = LAYOUTS[layout](row)
    return [read_single(made) if needs_completions else made]


def _check_no_steps(given: Json) -> None:
    texts, labels = given["completions"], given.get("labels")
    if not isinstance(labels, list) or len(labels) != len(texts):
        return
    if all(isinstance(each, str) for each in texts) and all(each in (0, 1) for each in labels):
        raise RowError(
            "labels",
            "makes the completions steps of one answer, as TRL's stepwise supervision has them, "
            "and here they are answers of which one is chosen; of such, "
            '"completions": [{"text": ..., "reward": ...}] says what each is worth',
        )


def _check_split(row: Json) -> None:
    try:
        check_split(row)
    except RowError as error:
        hint = "--splits names the splits to read, and --test-splits those that are for the test"
        raise RowError(error.field, f"{error.message}; {hint}") from error


def _check_rewards(row: PromptRow) -> None:
    for index, each in enumerate(row.completions):
        if each.reward is None:
            raise RowError(f"completions[{index}].reward", "is missing, and no reward was named")


def read_row(fields: Json) -> PromptRow:
    """Read a row of ours, such as a dataset keeps.

    Raises:
        RowError: It is not valid; the field is named.
    """
    # A table has every column in every row: what is null there is not there.
    given = {name: value for name, value in fields.items() if value is not None}
    has_pair = "chosen" in given or "rejected" in given
    if "prompt" in given and "messages" in given:
        raise RowError("messages", "must not stand beside 'prompt'")
    prompt: str | list[Json] | None = None
    if "messages" in given:
        prompt = read_chat("messages", given["messages"])
    elif isinstance(given.get("prompt"), list):  # TRL's conversational form
        prompt = read_chat("prompt", given["prompt"])
    elif "prompt" in given:
        prompt = read_text("prompt", given["prompt"])
        if not prompt:
            raise RowError("prompt", "must not be empty, got ''")
    completions: tuple[GivenCompletion, ...] = ()
    if has_pair:
        if "completions" in given:
            raise RowError("completions", "must not stand beside 'chosen' and 'rejected'")
        prompt, completions = read_pair(given, prompt)
    elif "completions" in given:
        completions = read_completions(given["completions"])
        _check_no_steps(given)
    if prompt is None:
        raise RowError("prompt", "is missing, and so is messages")
    return PromptRow(prompt=prompt, fields=fields, completions=completions)
