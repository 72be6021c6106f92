"""Which terms and which objective suit a dataset, chosen without looking at the test prompts.

First every reading alone, and the numbers alone; then what these say is best together.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qprobe.data.dataset import Dataset
from qprobe.data.split import split_prompts
from qprobe.errors import EvaluationError
from qprobe.evaluation.summary import summarise
from qprobe.files import write_files
from qprobe.probe.probe import Probe
from qprobe.probe.reading import Reading
from qprobe.probe.values import Source
from qprobe.training.cells import (
    CELLS_FILE,
    Cell,
    CellFile,
    TriedCell,
    choose_cell,
    tell_apart,
    try_objectives,
)
from qprobe.training.design import Design, settle_numbers
from qprobe.training.gate import Gate
from qprobe.training.judgement import judge
from qprobe.training.recipe import DEFAULT_K, make_probe
from qprobe.training.settings import TrainingSettings

__all__ = [
    "Cell",
    "SweepResult",
    "count_cells",
    "drop_equal",
    "format_table",
    "run_sweep",
    "write_sweep",
]

Json = dict[str, Any]
# Of the best: how many readings are tried with the numbers too, and how many layers together.
_WITH_NUMBERS, _LAYERS_TOGETHER = 5, (2, 3)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        cells: In the order tried: by terms, then objective.
        winner: The one that ``choose_cell`` takes.
        settings: The winner's.
        probe: The winner's, trained on all development prompts.
        development: The prompts that everything was chosen and trained on, ascending.
        test: The other prompts, ascending: only the winner was ever scored on them.
        base: Reward of one sample on the development prompts.
        ceiling: Best of all samples by reward on the development prompts. As in ``fit_probe``, all
            samples of a prompt are the candidates in ``cells``, not k of them.
        metrics: ``judge`` of the winner on the test prompts.
    """

    cells: list[Cell]
    winner: Cell
    settings: TrainingSettings
    probe: Probe
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

    Means over windows that no answer outgrows, and the largest of such, are all the mean over the
    whole answer. The one without a window is kept, or else that with the shortest.
    """
    longest = max((each.num_scored for each in dataset.samples), default=0)
    kept: dict[Reading, Reading] = {}
    for reading in sorted(readings, key=lambda each: each.window or 0):
        whole = reading.window is not None and reading.window >= longest
        kept.setdefault(Reading(reading.layer, "mean") if whole else reading, reading)
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
    numbers: Sequence[str] | None = None,
    gates: Sequence[str] = (),
    k: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    licence: str | None = None,
    folder: Path | None = None,
    progress: Callable[[Cell], object] = lambda cell: None,
) -> SweepResult:
    """Train every reading with every objective, and the best together; evaluate the winner.

    It is evaluated on prompts set aside. With every objective there are: each reading; the numbers;
    the best few readings with the numbers; the best readings of the best two and three layers
    together, with the numbers if there are any; and each gate, alone and with the numbers.

    Cells are compared by the cross-validated reward that also chose their weight decay: simple
    rather than nested, and so optimistic by the best of a few. It only has to rank them
    (``choose_cell``); what to believe of the winner is its reward on the test prompts.

    Args:
        dataset: At least 4 prompts, each with samples.
        readings: As in ``train``. There may be none if there are numbers.
        objectives: At least one. One that refuses the data, such as ``ce`` with rewards above 1,
            leaves an empty cell. Not both ``bt`` and ``dpo``, which are the same here.
        settings: Of every training, but for the objective.
        numbers: As in ``train``.
        gates: Each as in ``train``. One takes longer than all the rest.
        k: How many samples the winner chooses among on the test prompts, as in ``train``.
        test_fraction: Of the prompts, set aside first; None as in ``split_prompts``.
        seed: Of the split.
        licence: SPDX expression for the probe's weights.
        folder: Where finished cells are kept until ``write_sweep``, so that a sweep that was
            stopped goes on when it is called again. None keeps none.
        progress: Called after each cell, also those that were there.

    Raises:
        DatasetError: A reading is not stored.
        EvaluationError: There is nothing to try, or the same twice, or too few prompts or samples,
            or the folder holds cells of a sweep with another dataset, other prompts or samples of
            it, or other settings.
        TrainingError: Every objective refused the data; this is the first one's reason.
    """
    numbers = settle_numbers(dataset, numbers)
    _check_choices(numbers, readings=[*map(str, readings)], gates=gates, objectives=objectives)
    gated = [Design(gates=(Gate.parse(each),)) for each in gates]
    k = dataset.settle_k(k, default=DEFAULT_K)
    for each in [*(Design((reading,)) for reading in readings), *gated]:
        each.require(dataset)
    choices = [replace(settings, objective=objective) for objective in objectives]
    development, test = split_prompts(
        dataset.prompts, test_fraction=test_fraction, seed=seed, places=dataset.places
    )
    known = dataset.subset(development)
    cells = None
    if folder is not None:
        cells = CellFile(folder / CELLS_FILE, tell_apart(dataset, known, test, settings))
    tried = _try_all(known, readings, numbers, gated, choices, cells, progress)
    winner = choose_cell(tried, known.questions)
    chosen = replace(settings, objective=winner.objective)
    probe = make_probe(known, winner.terms, chosen, k=k, licence=licence)
    about = summarise(known)
    assert about is not None  # there are samples: a probe was trained on them
    return SweepResult(
        cells=[each.cell for each in tried],
        winner=winner,
        settings=chosen,
        probe=probe,
        development=development,
        test=test,
        base=about.base,
        ceiling=about.ceiling,
        metrics=judge(probe, dataset.subset(test), known=known, k=k, beta=settings.beta),
    )


def _check_choices(numbers: Sequence[str], **chosen: Sequence[str]) -> None:
    objectives = chosen["objectives"]
    if not (chosen["readings"] or numbers) or not objectives:
        raise EvaluationError("readings", "or numbers, and objectives must hold at least one each")
    for name, given in chosen.items():
        for index, each in enumerate(given):
            if each in given[:index]:
                raise EvaluationError(name, f"must be different, got {each!r} twice")
    if {"bt", "dpo"} <= set(objectives):
        message = "must not hold both 'bt' and 'dpo': for a probe they are the same loss"
        raise EvaluationError("objectives", message)


def _try_all(
    known: Dataset,
    readings: Sequence[Reading],
    numbers: tuple[str, ...],
    gated: Sequence[Design],
    choices: Sequence[TrainingSettings],
    cells: CellFile | None,
    progress: Callable[[Cell], object],
) -> list[TriedCell]:
    tried: list[TriedCell] = []

    def run(designs: Sequence[Design]) -> None:
        for design in designs:
            for each in try_objectives(known, design, choices, cells):
                tried.append(each)
                progress(each.cell)

    run([*(Design((each,)) for each in readings), *([Design((), numbers)] if numbers else [])])
    run(_combine(tried, numbers))
    for each in gated:
        run([each, *([replace(each, numbers=numbers)] if numbers else [])])
    return tried


def count_cells(
    readings: Sequence[Reading], *, numbers: bool, objectives: int, gates: int = 0
) -> int:
    """Return how many cells a sweep has."""
    num_layers = len({each.layer for each in readings})
    together = sum(size <= num_layers for size in _LAYERS_TOGETHER)
    with_numbers = 1 + min(_WITH_NUMBERS, len(readings)) if numbers else 0
    with_gates = gates * (2 if numbers else 1)
    return (len(readings) + with_numbers + together + with_gates) * objectives


def _combine(tried: Sequence[TriedCell], numbers: tuple[str, ...]) -> list[Design]:
    """Return what is tried after the single readings, by what these earned."""
    earned: dict[Reading, float] = {}
    for cell in (each.cell for each in tried):
        for reading in cell.terms.readings:
            reward = -math.inf if cell.reward is None else cell.reward
            earned[reading] = max(reward, earned.get(reading, -math.inf))
    best = sorted(earned, key=lambda each: -earned[each])
    of_layers: dict[Source, Reading] = {}
    for each in best:
        of_layers.setdefault(each.layer, each)
    designs = [Design((each,), numbers) for each in best[:_WITH_NUMBERS]] if numbers else []
    for size in _LAYERS_TOGETHER:
        if size <= len(of_layers):
            designs.append(Design(tuple(of_layers.values())[:size], numbers))
    return designs


def format_table(result: SweepResult) -> str:
    """Return the cells' rewards as text: terms by objectives, the winner starred.

    Below it stands why there are cells without.
    """
    objectives = list(dict.fromkeys(cell.objective for cell in result.cells))
    terms = list(dict.fromkeys(cell.terms for cell in result.cells))
    found = {(cell.terms, cell.objective): cell for cell in result.cells}
    width = max(len("terms"), *(len(str(each)) for each in terms))
    lines = ["terms".ljust(width) + "".join(f"{name:>8} " for name in objectives)]
    for each in terms:
        row = [found[each, objective] for objective in objectives]
        texts = ["-" if cell.reward is None else f"{cell.reward:.3f}" for cell in row]
        marks = ["*" if cell == result.winner else " " for cell in row]
        texts = [f"{text:>8}{mark}" for text, mark in zip(texts, marks, strict=True)]
        lines.append(str(each).ljust(width) + "".join(texts))
    refusals = [(cell.objective, cell.refusal) for cell in result.cells if cell.refusal]
    lines += [f"- {objective}: {refusal}" for objective, refusal in dict.fromkeys(refusals)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def write_sweep(result: SweepResult, folder: Path) -> None:
    """Write ``sweep.json`` and ``sweep.csv``, older ones replaced; remove the cells kept so far.

    So whatever else is made of the result is written before.

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
    files = {"sweep.csv": table.getvalue().encode(), "sweep.json": content.encode()}
    write_files(folder, files)
    (folder / CELLS_FILE).unlink(missing_ok=True)
