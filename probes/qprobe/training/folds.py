"""Which prompts are held out together in cross-validation."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.errors import TrainingError

__all__ = ["count_folds", "make_folds"]


def make_folds(
    rewards: NDArray[np.float64],
    groups: NDArray[np.int64],
    questions: NDArray[np.int64],
    *,
    num_folds: int,
    seed: int,
) -> Tensor:
    """Return the fold of each prompt; every fold has questions that tell probes apart.

    Args:
        rewards: Shape (samples,), finite.
        groups: Shape (samples,): the prompt of each, never decreasing.
        questions: Shape (samples,): what the prompt of each asks; the same are in one fold.
        num_folds: At least 2.
        seed: Of the order in which questions are dealt out.

    Returns:
        Shape (prompts,), from 0 to num_folds - 1.

    Raises:
        TrainingError: Fewer than ``num_folds`` questions have differing rewards.
    """
    asked, differ = _find_telling(rewards, groups, questions)
    if not differ.any():
        raise TrainingError("rewards", "differ within no prompt, so there is nothing to learn")
    if int(differ.sum()) < num_folds:
        raise TrainingError(
            "num_folds",
            f"must be at most {int(differ.sum())!r}, the prompts with differing rewards (the same "
            f"one counts once), got {num_folds!r}",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(differ), generator=generator)
    order = torch.cat([order[differ[order]], order[~differ[order]]])
    folds = torch.empty_like(order)
    folds[order] = torch.arange(len(order)) % num_folds
    return folds[asked]


def count_folds(
    rewards: NDArray[np.float64],
    groups: NDArray[np.int64],
    questions: NDArray[np.int64],
    *,
    most: int,
) -> int:
    """Return how many folds a part of a dataset allows: ``most``, or fewer, and at least 2.

    Arguments are those of ``make_folds``, which refuses 2 too where there is too little.
    """
    _, differ = _find_telling(rewards, groups, questions)
    return max(2, min(most, int(differ.sum())))


def _find_telling(
    rewards: NDArray[np.float64], groups: NDArray[np.int64], questions: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return each prompt's question, and whether rewards differ within a prompt of each question.

    Shapes are (prompts,) and (questions,); questions are numbered without gaps.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    asked = torch.from_numpy(np.unique(questions[starts], return_inverse=True)[1])
    differ = torch.zeros(int(asked.max()) + 1, dtype=torch.bool)
    differ[asked[_differ(torch.as_tensor(rewards), torch.as_tensor(groups))]] = True
    return asked, differ


def _differ(rewards: Tensor, groups: Tensor) -> Tensor:
    """Whether a prompt's rewards differ: shape (prompts,)."""
    _, segments = torch.unique_consecutive(groups, return_inverse=True)
    highest = torch.full((int(segments[-1]) + 1,), -math.inf, dtype=rewards.dtype)
    lowest = -highest
    highest = highest.scatter_reduce(0, segments, rewards, "amax")
    return highest > lowest.scatter_reduce(0, segments, rewards, "amin")
