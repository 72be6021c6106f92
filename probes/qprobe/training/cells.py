"""The cells of a sweep: how each is tried, which one wins, and the file to go on from."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import identify_prompts
from qprobe.errors import EvaluationError, QProbeError, TrainingError
from qprobe.evaluation.bootstrap import find_error
from qprobe.files import write_file
from qprobe.training.cross_validation import cross_validate
from qprobe.training.design import Design, pose
from qprobe.training.inputs import Inputs
from qprobe.training.settings import TrainingSettings

__all__ = [
    "CELLS_FILE",
    "Cell",
    "CellFile",
    "TriedCell",
    "choose_cell",
    "tell_apart",
    "try_objectives",
]

Json = dict[str, Any]
Floats = NDArray[np.float64]
CELLS_FILE = "sweep-cells.json"
# Of objectives that earn about the same: those first that have less to fit to noise with.
_STEADIEST = ("ce", "mse", "bt", "dpo", "ppo", "pg")


@dataclass(frozen=True)
class Cell:
    """The terms of a probe with one objective.

    Attributes:
        terms: What the probe is the sum of.
        objective: What it is trained with.
        reward: Cross-validated expected reward on the development prompts at the best weight decay,
            so a little too high; None if the objective does not go with the data.
        weight_decay: The best one, or None.
        refusal: Why there is no reward, or None.
    """

    terms: Design
    objective: str
    reward: float | None
    weight_decay: float | None
    refusal: str | None

    def to_json(self) -> Json:
        """Return the fields in JSON types, the terms as a string."""
        return {**asdict(self), "terms": str(self.terms)}


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
        fields = {**stored, "terms": Design.parse(stored["terms"])}
        rewards = np.array(fields.pop("rewards"), dtype=np.float64)
        return cls(Cell(**fields), rewards)


class CellFile:
    """The finished cells of a sweep that is not; each is durable once it is added.

    Args:
        path: Of the file, which may be there.
        about: What cells depend on besides their terms and objective, in JSON types.

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
        except (ValueError, KeyError, TypeError, QProbeError) as error:
            raise EvaluationError("output", f"{str(path)!r} is no sweep's: remove it") from error
        for name, value in self._about.items():
            if former.get(name) != value:
                raise EvaluationError(
                    "output",
                    f"{str(path)!r} is of a sweep that was stopped, with {name} "
                    f"{former.get(name)} and not {value}: go on with the same, or remove the file "
                    "to start anew",
                )
        self._cells = {(str(each.cell.terms), each.cell.objective): each for each in cells}

    def find(self, terms: Design, objective: str) -> TriedCell | None:
        """Return the cell if it is finished."""
        return self._cells.get((str(terms), objective))

    def add(self, tried: TriedCell) -> None:
        """Keep a finished cell.

        Raises:
            OSError: The file cannot be written; it is as it was.
        """
        self._cells[str(tried.cell.terms), tried.cell.objective] = tried
        cells = [each.to_json() for each in self._cells.values()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"about": self._about, "cells": cells}, allow_nan=False)
        write_file(self._path, content.encode())


def tell_apart(
    dataset: Dataset, known: Dataset, test: list[int], settings: TrainingSettings
) -> Json:
    """Return what the cells of a sweep depend on, besides their own terms and objective."""
    # Which prompts and how many samples of each there are, as the digest is of all stored.
    counted = [*identify_prompts(known.prompts), *map(str, known.num_samples)]
    digest = hashlib.sha256(" ".join(counted).encode()).hexdigest()[:12]
    about = {
        "dataset": dataset.digest,
        "development_prompts": f"{len(known.prompts)}, of {len(known.samples)} samples ({digest})",
        "test_prompts": test,
        **asdict(settings),
    }
    del about["objective"]
    return about


def choose_cell(tried: Sequence[TriedCell], questions: NDArray[np.int64]) -> Cell:
    """Return the winner: of the terms that earn most, the steadiest objective that is as good.

    An objective is as good if it earns less than the best one by no more than a standard error of
    their difference, over questions. With few prompts that is much, and the choice falls on ``ce``
    rather than ``pg``, which fits noise there; with many it is little, and the best wins.

    Args:
        tried: At least one.
        questions: Shape (prompts,): what each prompt of their rewards asks.

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
        close = lost.mean() <= find_error(questions, lost)
        if each.cell.terms == best.cell.terms and close:
            good.append(each.cell)
    return min(good, key=lambda cell: _STEADIEST.index(cell.objective))


def try_objectives(
    known: Dataset, design: Design, choices: Sequence[TrainingSettings], cells: CellFile | None
) -> Iterator[TriedCell]:
    """Yield the cells of some terms; their features are prepared once, if at all."""
    inputs: Inputs | TrainingError | None = None
    for settings in choices:
        found = cells.find(design, settings.objective) if cells else None
        if found is None:
            if inputs is None:
                inputs = _prepare(known, design, settings)
            found = _try(known, inputs, design, settings)
            if cells:
                cells.add(found)
        yield found


def _prepare(known: Dataset, design: Design, settings: TrainingSettings) -> Inputs | TrainingError:
    try:
        return design.prepare(known, pose(known, settings).order)  # that of every objective
    except TrainingError as error:
        return error


def _try(
    known: Dataset, inputs: Inputs | TrainingError, design: Design, settings: TrainingSettings
) -> TriedCell:
    try:
        if isinstance(inputs, TrainingError):
            raise inputs
        tried = cross_validate(pose(known, settings), inputs)
    except TrainingError as error:
        return TriedCell(Cell(design, settings.objective, None, None, str(error)), np.zeros(0))
    rewards, decay = tried.rewards[tried.best], tried.weight_decays[tried.best]
    cell = Cell(design, settings.objective, float(rewards.mean()), decay, None)
    return TriedCell(cell, rewards)
