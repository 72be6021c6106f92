"""Training on a part of a dataset's samples, as what is said of the others needs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.evaluation.scoring import score
from qprobe.training.cross_validation import Problem
from qprobe.training.design import Columns, Design
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_inputs
from qprobe.training.folds import count_folds

__all__ = ["fit_part", "pose_part", "score_held_out"]

Ints = NDArray[np.int64]


def pose_part(
    dataset: Dataset, settings: TrainingSettings, rows: Ints | slice = slice(None)
) -> Problem:
    """Return what a probe is fitted to, in fewer folds if too few questions tell anything.

    Args:
        dataset: Knows the rewards.
        settings: Of the training.
        rows: Shape (some samples,), ascending.

    Raises:
        TrainingError: As ``fit_probe``.
    """
    rewards, groups = dataset.rewards[rows], dataset.groups[rows]
    questions = dataset.questions[groups]
    num_folds = count_folds(rewards, groups, questions, most=settings.num_folds)
    return Problem(rewards, groups, replace(settings, num_folds=num_folds), questions)


def fit_part(
    dataset: Dataset, columns: Columns, rows: Ints, settings: TrainingSettings
) -> FittedProbe:
    """Train a probe on some samples; see ``pose_part``.

    Args:
        dataset: Knows the rewards.
        columns: What is read of all its samples.
        rows: Shape (some samples,), ascending.
        settings: Of the training.
    """
    problem = pose_part(dataset, settings, rows)
    return fit_inputs(problem, columns[rows].prepare(problem.order))


def score_held_out(
    dataset: Dataset,
    design: Design,
    settings: TrainingSettings,
    folds: Ints,
    *,
    tokens: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> NDArray[np.float64]:
    """Score the samples of each fold by a probe that was trained on the others: (samples,).

    Args:
        dataset: Has what is read.
        design: What the score is the sum of.
        settings: Of the trainings.
        folds: Shape (samples,), from 0 without a gap; those that answer one question in one.
        tokens: As in ``Design.read``.
        progress: Called after each fold.

    Raises:
        DatasetError: Something is not stored.
        TrainingError: As ``fit_part`` and ``Design.read``.
    """
    columns = design.read(dataset, tokens=tokens)
    scores = np.empty(len(folds))
    for fold in range(int(folds.max()) + 1):
        inside = folds == fold
        fitted = fit_part(dataset, columns, np.flatnonzero(~inside), settings)
        rest = dataset.subset(np.unique(dataset.groups[inside]).tolist())
        scores[inside] = score(design.to_terms(fitted), rest, tokens=tokens)
        progress()
    return scores
