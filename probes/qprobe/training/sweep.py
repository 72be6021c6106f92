"""Which reading and which objective suit a dataset, chosen without looking at the test prompts."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qprobe.data.dataset import Dataset
from qprobe.data.split import split_prompts
from qprobe.errors import EvaluationError, TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.metrics import measure
from qprobe.files import write_files
from qprobe.probe.reading import Reading
from qprobe.training.cells import CELLS_FILE, Cell, CellFile, TriedCell, choose_cell
from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_probe
from qprobe.training.inputs import Inputs, prepare
from qprobe.training.recipe import DEFAULT_K

__all__ = ["Cell", "SweepResult", "drop_equal", "format_table", "run_sweep", "write_sweep"]

Json = dict[str, Any]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        cells: In the order tried: by reading, then objective.
        winner: The one that ``choose_cell`` takes.
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
    folder: Path | None = None,
    progress: Callable[[Cell], object] = lambda cell: None,
) -> SweepResult:
    """Train every reading with every objective; evaluate the best on prompts set aside.

    Cells are compared by the cross-validated reward that also chose their weight decay: simple
    rather than nested, and so optimistic by the best of a few. It only has to rank them
    (``choose_cell``); what to believe of the winner is its reward on the test prompts.

    Args:
        dataset: At least 4 prompts, each with samples.
        readings: At least one, all stored in the dataset.
        objectives: At least one. One that refuses the data, such as ``ce`` with rewards above 1,
            leaves an empty cell. Not both ``bt`` and ``dpo``, which are the same here.
        settings: Of every training, but for the objective.
        k: How many samples the winner chooses among on the test prompts, as in ``train``.
        test_fraction: Of the prompts, set aside first; None as in ``split_prompts``.
        seed: Of the split.
        folder: Where finished cells are kept until ``write_sweep``, so that a sweep that was
            stopped goes on when it is called again. None keeps none.
        progress: Called after each cell, also those that were there.

    Raises:
        DatasetError: A reading is not stored.
        EvaluationError: There is nothing to try, or the same twice, or too few prompts or samples,
            or the folder holds cells of a sweep with another dataset or other settings.
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
    about = {"dataset": dataset.digest, "test_prompts": test, **asdict(settings)}
    del about["objective"]
    cells = None if folder is None else CellFile(folder / CELLS_FILE, about)
    tried = []
    for reading in readings:
        for each in _try_objectives(known, reading, choices, cells):
            tried.append(each)
            progress(each.cell)
    winner = choose_cell(tried)
    chosen = replace(settings, objective=winner.objective)
    probe = fit_probe(
        [known.features(winner.reading)],
        known.rewards,
        known.groups,
        chosen,
        known.questions[known.groups],
    )
    starts = np.flatnonzero(np.diff(known.groups, prepend=-1))
    held_out = dataset.subset(test)
    scores = probe.score([held_out.features(winner.reading)]).double().numpy()
    return SweepResult(
        cells=[each.cell for each in tried],
        winner=winner,
        settings=chosen,
        probe=probe,
        development=development,
        test=test,
        base=float(
            expected_rewards(known.rewards, known.rewards, known.groups, k=1, beta=0).mean()
        ),
        ceiling=float(np.maximum.reduceat(known.rewards, starts).mean()),
        metrics=measure(scores, held_out, k=k, beta=settings.beta),
    )


def _try_objectives(
    known: Dataset, reading: Reading, choices: Sequence[TrainingSettings], cells: CellFile | None
) -> Iterator[TriedCell]:
    """Yield the cells of a reading; its features are prepared once, if at all."""
    inputs: Inputs | TrainingError | None = None
    for settings in choices:
        found = cells.find(reading, settings.objective) if cells else None
        if found is None:
            if inputs is None:
                inputs = _prepare(known, reading)
            found = _try(known, inputs, reading, settings)
            if cells:
                cells.add(found)
        yield found


def _prepare(known: Dataset, reading: Reading) -> Inputs | TrainingError:
    try:
        return prepare([known.features(reading)])
    except TrainingError as error:
        return error


def _try(
    known: Dataset, inputs: Inputs | TrainingError, reading: Reading, settings: TrainingSettings
) -> TriedCell:
    try:
        if isinstance(inputs, TrainingError):
            raise inputs
        questions = known.questions[known.groups]
        tried = cross_validate(Problem(known.rewards, known.groups, settings, questions), inputs)
    except TrainingError as error:
        cell = Cell(reading, settings.objective, None, None, str(error))
        return TriedCell(cell, np.zeros(0))
    rewards, decay = tried.rewards[tried.best], tried.weight_decays[tried.best]
    cell = Cell(reading, settings.objective, float(rewards.mean()), decay, None)
    return TriedCell(cell, rewards)


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
    """Write ``sweep.json`` and ``sweep.csv``, older ones replaced; remove the cells kept so far.

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
    (folder / CELLS_FILE).unlink(missing_ok=True)
