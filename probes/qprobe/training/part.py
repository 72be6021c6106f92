"""Training anew on a part of a dataset's samples, as what is said of the others needs."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.training.cross_validation import Problem
from qprobe.training.design import Columns
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_inputs
from qprobe.training.folds import count_folds

__all__ = ["fit_part"]


def fit_part(
    dataset: Dataset, columns: Columns, rows: NDArray[np.int64], settings: TrainingSettings
) -> FittedProbe:
    """Train a probe on some samples, in fewer folds if too few of their questions tell anything.

    Args:
        dataset: Knows the rewards.
        columns: What is read of all its samples.
        rows: Shape (some samples,), ascending.
        settings: Of the training.

    Raises:
        TrainingError: As ``fit_probe``.
    """
    rewards, groups = dataset.rewards[rows], dataset.groups[rows]
    questions = dataset.questions[groups]
    num_folds = count_folds(rewards, groups, questions, most=settings.num_folds)
    problem = Problem(rewards, groups, replace(settings, num_folds=num_folds), questions)
    return fit_inputs(problem, columns[rows].prepare(problem.order))
