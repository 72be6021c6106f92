"""Which prompts a probe is trained on, and which ones judge it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qprobe.data.provenance import identify_prompts
from qprobe.errors import EvaluationError, RowError

__all__ = [
    "DEFAULT_TEST_FRACTION",
    "check_split",
    "has_split",
    "split_prompts",
]

Json = dict[str, Any]

DEFAULT_TEST_FRACTION = 0.25
_SIDES = ("train", "test")


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
    prompts: Sequence[Json],
    *,
    test_fraction: float | None = None,
    seed: int = 0,
    places: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split prompts into development and test prompts, each ascending.

    Rows that ask the same, as data of preferences have them, stay together.

    Args:
        prompts: Rows of a dataset, at least 4 different prompts.
        test_fraction: Above 0, below 1; rounded to at least 2 different prompts on each side, which
            are taken at random. None: as the rows' field ``split`` says, and a quarter if they have
            none.
        seed: Of the random split.
        places: Where each row is, for errors; None counts them.

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
        places = places or [f"row {row}" for row in range(1, len(prompts) + 1)]
        return _split_as_told(prompts, asked, places)
    if test_fraction is None:
        test_fraction = DEFAULT_TEST_FRACTION
    if not 0 < test_fraction < 1:
        raise EvaluationError("test_fraction", f"must be between 0 and 1, got {test_fraction!r}")
    num_test = min(max(2, round(test_fraction * len(different))), len(different) - 2)
    order = np.random.default_rng(seed).permutation(len(different)).tolist()
    chosen = {different[i] for i in order[:num_test]}
    test = [i for i, each in enumerate(asked) if each in chosen]
    return sorted(set(range(len(asked))) - set(test)), test


def _split_as_told(
    prompts: Sequence[Json], asked: Sequence[str], places: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Split rows by their field ``split``; ``asked`` tells which ask the same."""
    hint = "; --test-fraction splits at random"
    sides: dict[str, list[int]] = {side: [] for side in _SIDES}
    for index, row in enumerate(prompts):
        try:
            check_split(row)
        except RowError as error:
            message = f"of {places[index]} {error.message}{hint}"
            raise EvaluationError(error.field, message) from error
        sides[row["split"]].append(index)
    for side, rows in sides.items():
        if len({asked[index] for index in rows}) < 2:
            raise EvaluationError("split", f"must be {side!r} in 2 different rows at least{hint}")
    both = {asked[index] for index in sides["train"]} & {asked[index] for index in sides["test"]}
    if both:
        first = next(index for index in sides["test"] if asked[index] in both)
        raise EvaluationError(
            "split", f"of {places[first]} is 'test', and a row that asks the same is 'train'{hint}"
        )
    return sides["train"], sides["test"]
