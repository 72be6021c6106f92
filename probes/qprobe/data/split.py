"""Which prompts a probe is trained on, and which ones judge it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from qprobe.errors import EvaluationError, ProbeFileError, RowError

__all__ = [
    "DEFAULT_TEST_FRACTION",
    "SEEN",
    "SEEN_BY_SCHEDULE",
    "check_split",
    "has_split",
    "identify_prompts",
    "note_seen",
    "read_seen",
    "split_prompts",
]

Json = dict[str, Any]

DEFAULT_TEST_FRACTION = 0.25
# Fields of ``ProbeInfo.training``: the prompts that a probe was trained on, and others that its
# schedule was chosen on. One text each and not a list, since a server may hold thousands of probes.
SEEN = "seen_prompts"
SEEN_BY_SCHEDULE = "schedule_prompts"
_SIDES = ("train", "test")
_DIGITS = 12


def identify_prompts(prompts: Sequence[Json]) -> list[str]:
    """Return 12 hex digits for each row, by what it asks: its ``prompt`` or ``messages``.

    Any two of 100,000 different prompts come out the same with a probability of 2e-5.
    """
    # The last is of pairs of whole chats.
    asked = (
        row.get("messages") or row.get("prompt") or row.get("chosen", [])[:-1] for row in prompts
    )
    # A message is the same in whatever order its fields are written.
    texts = (json.dumps(each, sort_keys=True) for each in asked)
    return [hashlib.sha256(text.encode()).hexdigest()[:_DIGITS] for text in texts]


def note_seen(prompts: Sequence[Json]) -> str:
    """Return the value of either field for a probe made with these prompts."""
    return "".join(dict.fromkeys(identify_prompts(prompts)))


def read_seen(training: Json, field: str = SEEN) -> set[str]:
    """Return the prompts, as ``identify_prompts`` has them, that a field names; or none.

    Raises:
        ProbeFileError: The value is not one of ``note_seen``.
    """
    noted = training.get(field, "")
    if not isinstance(noted, str) or len(noted) % _DIGITS:
        raise ProbeFileError(f"training.{field}", f"must be {_DIGITS} digits for each prompt")
    return {noted[start : start + _DIGITS] for start in range(0, len(noted), _DIGITS)}


def has_split(prompts: Sequence[Json]) -> bool:
    """Whether the rows have the field ``split``, which must then pass ``check_split``."""
    return any("split" in row for row in prompts)


def check_split(row: Json) -> None:
    """Check the field ``split`` of a row, if others have it.

    Raises:
        RowError: It is neither ``train`` nor ``test``.
    """
    if row.get("split") not in _SIDES:
        raise RowError(
            "split", f"must be 'train' or 'test' in every row or in none, got {row.get('split')!r}"
        )


def split_prompts(
    prompts: Sequence[Json], *, test_fraction: float | None = None, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split prompts into development and test prompts, each ascending.

    Rows that ask the same, as data of preferences have them, stay together.

    Args:
        prompts: Rows of a dataset, at least 4 different prompts.
        test_fraction: Above 0, below 1; rounded to at least 2 different prompts on each side, which
            are taken at random. None: as the rows' field ``split`` says, and a quarter if they have
            none.
        seed: Of the random split.

    Raises:
        EvaluationError: An argument is out of range, or the rows' fields are no split; the field
            is named.
    """
    asked = identify_prompts(prompts)
    different = list(dict.fromkeys(asked))
    if len(different) < 4:
        raise EvaluationError(
            "prompts", f"must be at least 4 different ones to split them, got {len(different)!r}"
        )
    if test_fraction is None and has_split(prompts):
        return _split_as_told(prompts, asked)
    if test_fraction is None:
        test_fraction = DEFAULT_TEST_FRACTION
    if not 0 < test_fraction < 1:
        raise EvaluationError("test_fraction", f"must be between 0 and 1, got {test_fraction!r}")
    num_test = min(max(2, round(test_fraction * len(different))), len(different) - 2)
    order = np.random.default_rng(seed).permutation(len(different)).tolist()
    chosen = {different[i] for i in order[:num_test]}
    test = [i for i, each in enumerate(asked) if each in chosen]
    return sorted(set(range(len(asked))) - set(test)), test


def _split_as_told(prompts: Sequence[Json], asked: Sequence[str]) -> tuple[list[int], list[int]]:
    """Split rows by their field ``split``; ``asked`` tells which ask the same."""
    hint = "; --test-fraction splits at random"
    sides: dict[str, list[int]] = {side: [] for side in _SIDES}
    for index, row in enumerate(prompts):
        try:
            check_split(row)
        except RowError as error:
            message = f"of row {index + 1} {error.message}{hint}"
            raise EvaluationError(error.field, message) from error
        sides[row["split"]].append(index)
    for side, rows in sides.items():
        if len({asked[index] for index in rows}) < 2:
            raise EvaluationError("split", f"must be {side!r} in 2 different rows at least{hint}")
    both = {asked[index] for index in sides["train"]} & {asked[index] for index in sides["test"]}
    if both:
        first = next(index for index in sides["test"] if asked[index] in both)
        raise EvaluationError(
            "split", f"of row {first + 1} is 'test', and a row that asks the same is 'train'{hint}"
        )
    return sides["train"], sides["test"]
