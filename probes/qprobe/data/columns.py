"""Which of a file's columns is which of ours, and which of its splits are for the test."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qprobe.data.fields import show
from qprobe.errors import RowError

__all__ = ["Columns"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """How a file names what we read.

    Attributes:
        names: The file's columns by our names: ``{"prompt": "question"}``.
        split: The column that says of which split a row is.
        splits: The splits that are read; all of them if empty. Of one alone the rows keep no
            ``split``: they are for training and for the test.
        test_splits: The splits that judge a probe, all others being for training; if empty, the
            column must say ``train`` or ``test`` itself.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    split: str = "split"
    splits: tuple[str, ...] = ()
    test_splits: tuple[str, ...] = ()

    def takes(self, row: Json) -> bool:
        """Whether a row is of a split that is read.

        Raises:
            RowError: It does not say.
        """
        return not self.splits or self._split_of(row) in self.splits

    def rename(self, row: Json) -> Json:
        """Return a row with our names, its ``split`` as ``train`` or ``test``.

        Raises:
            RowError: A column that was named is not there.
        """
        made = {name: value for name, value in row.items() if name not in self.names.values()}
        for ours, theirs in self.names.items():
            if theirs not in row:
                there = ", ".join(row)
                raise RowError(theirs, f"is to be {ours!r}, but the row has {show(there)}")
            made[ours] = row[theirs]
        if self.test_splits:
            made["split"] = "test" if self._split_of(row) in self.test_splits else "train"
        elif len(self.splits) == 1:
            made.pop("split", None)
        elif self.split != "split":
            made["split"] = self._split_of(row)
        if made.get("split", "") is None:
            del made["split"]
        return made

    def check_seen(self, splits: Collection[str]) -> None:
        """Check that the splits that were named are among those of the rows.

        Raises:
            RowError: One is not.
        """
        for name in (*self.splits, *self.test_splits):
            if name not in splits:
                there = ", ".join(sorted(splits))
                raise RowError(self.split, f"is {name!r} in no row, but {show(there)}")

    def _split_of(self, row: Json) -> str:
        value = row.get(self.split)
        if not isinstance(value, str):
            raise RowError(self.split, f"must name the row's split, got {show(value)}")
        return value
