"""Which reading and which objective suit a dataset, chosen without looking at the test prompts."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qprobe.data.dataset import Dataset
from qprobe.data.split import split_prompts
from qprobe.errors import EvaluationError, TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.metrics import measure
from qprobe.files import write_files
from qprobe.probe.reading import Reading
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_probe
from qprobe.training.recipe import DEFAULT_K

__all__ = ["Cell", "SweepResult", "drop_equal", "format_table", "run_sweep", "write_sweep"]

Json = dict[str, Any]


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
class SweepResult:
    """What a sweep found.

    Attributes:
        cells: In the order tried: by reading, then objective.
        winner: The cell with the highest reward, the first of them if tied.
        settings: The winner's: ``fit_probe`` with them on the development prompts gives ``probe``.
        probe: The winner's, trained on all development prompts.
        development: The prompts that everything was chosen and trained on, ascending.
        test: The other prompts, ascending: only the winner was ever scored on them.
        base: Reward of one sample on the development prompts.
        ceiling: Best of all samples by reward on the development prompts. As in ``fit_probe``, all
            samples of a prompt are the candidates in ``cells``, not k of them.
        metrics: ``measure`` of the winner on the test prompts.
    """

    cells: list[Cell]
    winner: Cell
    settings: TrainingSettings
    probe: FittedProbe
    development: list[int]
    test: list[int]
    base: float
    ceiling: float
    metrics: Json

    def to_json(self) -> Json:
        """Return all but the probe, in JSON types."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "winner": self.winner.to_json(),
            "settings": asdict(self.settings),
            "development_prompts": self.development,
            "test_prompts": self.test,
            "development": {"base": self.base, "ceiling": self.ceiling},
            "test": self.metrics,
        }


def drop_equal(
    dataset: Dataset, readings: Sequence[Reading]
) -> tuple[list[Reading], list[Reading]]:
    """Part readings into those that differ on a dataset, and those that repeat one of them.

    Means over windows that no answer outgrows are all the mean over the whole answer. The one
    without a window is kept, or else that with the shortest.
    """
    longest = max((each.num_scored for each in dataset.samples), default=0)
    kept: dict[Reading, Reading] = {}
    for reading in sorted(readings, key=lambda each: each.window or 0):
        whole = reading.window is not None and reading.window >= longest
        kept.setdefault(replace(reading, window=None) if whole else reading, reading)
    distinct = set(kept.values())
    return (
        [each for each in readings if each in distinct],
        [each for each in readings if each not in distinct],
    )


def run_sweep(
    dataset: Dataset,
    *,
    readings: Sequence[Reading],
    objectives: Sequence[str],
    settings: TrainingSettings,
    k: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    progress: Callable[[Cell], None] | None = None,
) -> SweepResult:
    """Train every reading with every objective; evaluate the best on prompts set aside.

    Cells are compared by the cross-validated reward that also chose their weight decay: simple
    rather than nested, and so optimistic by the best of a few. It only has to rank them; what to
    believe of the winner is its reward on the test prompts.

    Args:
        dataset: At least 4 prompts, each with samples.
        readings: At least one, all stored in the dataset.
        objectives: At least one. One that refuses the data, such as ``ce`` with rewards above 1,
            leaves an empty cell. Not both ``bt`` and ``dpo``, which are the same here.
        settings: Of every training, but for the objective.
        k: How many samples the winner chooses among on the test prompts, as in ``train``.
        test_fraction: Of the prompts, set aside first; None as in ``split_prompts``.
        seed: Of the split.
        progress: Called after each cell.

    Raises:
        DatasetError: A reading is not stored.
        EvaluationError: There is nothing to try, or the same twice, or too few prompts or samples.
        TrainingError: Every objective refused the data; this is the first one's reason.
    """
    if not readings or not objectives:
        raise EvaluationError("readings", "and objectives must hold at least one each")
    if {"bt", "dpo"} <= set(objectives):
        raise EvaluationError(
            "objectives",
            "must not hold both 'bt' and 'dpo': for a probe they are the same loss, and train the "
            "same weights",
        )
    k = dataset.settle_k(k, default=DEFAULT_K)
    dataset.require(readings)
    choices = [replace(settings, objective=objective) for objective in objectives]
    development, test = split_prompts(
        dataset.prompts, test_fraction=test_fraction, seed=seed, places=dataset.places
    )
    known = dataset.subset(development)
    tried = []
    for reading in readings:
        features = known.features(reading)
        for choice in choices:
            tried.append(_try(known, features, reading, choice))
            if progress is not None:
                progress(tried[-1][0])
    winner, probe = _choose(tried)
    starts = np.flatnonzero(np.diff(known.groups, prepend=-1))
    held_out = dataset.subset(test)
    scores = probe.score(held_out.features(winner.reading)).double().numpy()
    return SweepResult(
        cells=[cell for cell, _ in tried],
        winner=winner,
        settings=replace(settings, objective=winner.objective),
        probe=probe,
        development=development,
        test=test,
        base=float(
            expected_rewards(known.rewards, known.rewards, known.groups, k=1, beta=0).mean()
        ),
        ceiling=float(np.maximum.reduceat(known.rewards, starts).mean()),
        metrics=measure(scores, held_out, k=k, beta=settings.beta),
    )


def _try(
    known: Dataset, features: Tensor, reading: Reading, settings: TrainingSettings
) -> tuple[Cell, FittedProbe | None]:
    try:
        questions = known.questions[known.groups]
        fitted = fit_probe(features, known.rewards, known.groups, settings, questions)
    except TrainingError as error:
        return Cell(reading, settings.objective, None, None, str(error)), None
    reward = max(float(row["reward"]) for row in fitted.cross_validation)
    return Cell(reading, settings.objective, reward, fitted.weight_decay, None), fitted


def _choose(tried: Sequence[tuple[Cell, FittedProbe | None]]) -> tuple[Cell, FittedProbe]:
    """Return the first with the highest reward."""
    trained = [
        (cell.reward, cell, probe) for cell, probe in tried if probe and cell.reward is not None
    ]
    if not trained:
        raise TrainingError("objectives", f"none can be trained; the first: {tried[0][0].refusal}")
    _, winner, probe = max(trained, key=lambda each: each[0])
    return winner, probe


def format_table(result: SweepResult) -> str:
    """Return the cells' rewards as text: a row a reading, a column an objective, winner starred.

    Below it stands why there are cells without.
    """
    objectives = list(dict.fromkeys(cell.objective for cell in result.cells))
    readings = list(dict.fromkeys(cell.reading for cell in result.cells))
    found = {(cell.reading, cell.objective): cell for cell in result.cells}
    width = max(len("reading"), *(len(str(reading)) for reading in readings))
    lines = ["reading".ljust(width) + "".join(f"{name:>8} " for name in objectives)]
    for reading in readings:
        row = [found[reading, objective] for objective in objectives]
        texts = ["-" if cell.reward is None else f"{cell.reward:.3f}" for cell in row]
        marks = ["*" if cell == result.winner else " " for cell in row]
        texts = [f"{text:>8}{mark}" for text, mark in zip(texts, marks, strict=True)]
        lines.append(str(reading).ljust(width) + "".join(texts))
    refusals = [(cell.objective, cell.refusal) for cell in result.cells if cell.refusal]
    lines += [f"- {objective}: {refusal}" for objective, refusal in dict.fromkeys(refusals)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def write_sweep(result: SweepResult, folder: Path) -> None:
    """Write ``sweep.json`` and ``sweep.csv``; older ones are replaced.

    Raises:
        OSError: The folder cannot be written.
    """
    rows = [cell.to_json() for cell in result.cells]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_files(
        folder,
        {
            "sweep.csv": table.getvalue().encode(),
            "sweep.json": content.encode(),
        },
    )
