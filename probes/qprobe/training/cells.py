"""The cells of a sweep: what each is, which one wins, and the file that a sweep goes on from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import DatasetError, EvaluationError, TrainingError
from qprobe.files import write_file
from qprobe.probe.reading import Reading

__all__ = ["CELLS_FILE", "Cell", "CellFile", "TriedCell", "choose_cell"]

Json = dict[str, Any]
Floats = NDArray[np.float64]
CELLS_FILE = "sweep-cells.json"
# Of objectives that earn about the same: those first that have less to fit to noise with.
_STEADIEST = ("ce", "mse", "bt", "dpo", "ppo", "pg")


@dataclass(frozen=True)
class Cell:
    """One reading with one objective.

    Attributes:
        reading: What the probe reads.
        objective: What it is trained with.
        reward: Cross-validated expected reward on the development prompts at the best weight decay,
            so a little too high; None if the objective does not go with the data.
        weight_decay: The best one, or None.
        refusal: Why there is no reward, or None.
    """

    reading: Reading
    objective: str
    reward: float | None
    weight_decay: float | None
    refusal: str | None

    def to_json(self) -> Json:
        """Return the fields in JSON types, the reading as a string."""
        return {**asdict(self), "reading": str(self.reading)}


@dataclass(frozen=True)
class TriedCell:
    """A cell, and what it is compared by.

    Attributes:
        cell: The cell.
        rewards: Shape (prompts,): held-out expected rewards at the best decay; of length 0 if the
            objective does not go with the data.
    """

    cell: Cell
    rewards: Floats

    def to_json(self) -> Json:
        """Return what ``from_json`` takes."""
        return {**self.cell.to_json(), "rewards": self.rewards.tolist()}

    @classmethod
    def from_json(cls, stored: Json) -> "TriedCell":
        """Read what ``to_json`` returned."""
        fields = {**stored, "reading": Reading.parse(stored["reading"])}
        rewards = np.array(fields.pop("rewards"), dtype=np.float64)
        return cls(Cell(**fields), rewards)


class CellFile:
    """The finished cells of a sweep that is not; each is durable once it is added.

    Args:
        path: Of the file, which may be there.
        about: What cells depend on besides their reading and objective, in JSON types.

    Raises:
        EvaluationError: The file is of another sweep, or none of ours.
    """

    def __init__(self, path: Path, about: Json) -> None:
        self._path = path
        self._about = json.loads(json.dumps(about))
        self._cells: dict[tuple[str, str], TriedCell] = {}
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text("utf-8"))
            former = stored["about"]
            cells = [TriedCell.from_json(each) for each in stored["cells"]]
        except (ValueError, KeyError, TypeError, DatasetError) as error:
            raise EvaluationError("output", f"{str(path)!r} is no sweep's: remove it") from error
        for name, value in self._about.items():
            if former.get(name) != value:
                raise EvaluationError(
                    "output",
                    f"{str(path)!r} is of a sweep that was stopped, with {name} "
                    f"{former.get(name)} and not {value}: go on with the same, or remove the file "
                    "to start anew",
                )
        self._cells = {(str(each.cell.reading), each.cell.objective): each for each in cells}

    def find(self, reading: Reading, objective: str) -> TriedCell | None:
        """Return the cell if it is finished."""
        return self._cells.get((str(reading), objective))

    def add(self, tried: TriedCell) -> None:
        """Keep a finished cell.

        Raises:
            OSError: The file cannot be written; it is as it was.
        """
        self._cells[str(tried.cell.reading), tried.cell.objective] = tried
        cells = [each.to_json() for each in self._cells.values()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"about": self._about, "cells": cells}, allow_nan=False)
        write_file(self._path, content.encode())


def choose_cell(tried: Sequence[TriedCell]) -> Cell:
    """Return the winner: of the reading that earns most, the steadiest objective that is as good.

    An objective is as good if it earns less than the best one by no more than a standard error of
    their difference, over prompts. With few prompts that is much, and the choice falls on ``ce``
    rather than ``pg``, which fits noise there; with many it is little, and the best wins.

    Raises:
        TrainingError: None has a reward; this is the first one's reason.
    """
    trained = [each for each in tried if each.cell.reward is not None]
    if not trained:
        reason = tried[0].cell.refusal
        raise TrainingError("objectives", f"none can be trained; the first: {reason}")
    best = max(trained, key=lambda each: each.cell.reward or 0.0)
    good = []
    for each in trained:
        lost = best.rewards - each.rewards
        error = lost.std(ddof=1) / len(lost) ** 0.5
        if each.cell.reading == best.cell.reading and lost.mean() <= error:
            good.append(each.cell)
    return min(good, key=lambda cell: _STEADIEST.index(cell.objective))
