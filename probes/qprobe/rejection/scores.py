"""Scores of a probe and its heads on a dataset, and such scores of prompts that it was trained on.

The latter are cross-fitted: a probe that has seen a sample's reward ranks it better than it will
rank any other.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.evaluation.scoring import score
from qprobe.probe.probe import Probe
from qprobe.probe.terms import Terms
from qprobe.rejection.simulation import ScoredSamples
from qprobe.training.design import Design
from qprobe.training.fit import TrainingSettings
from qprobe.training.folds import make_folds
from qprobe.training.part import score_held_out

__all__ = ["cross_fit", "score_samples"]

Floats = NDArray[np.float64]


def score_samples(probe: Probe, dataset: Dataset) -> ScoredSamples:
    """Score a dataset as the server would: whole completions, and beginnings at each checkpoint.

    Raises:
        DatasetError: The probe's reading, or that of a checkpoint, is not stored.
    """
    heads = {tokens: score(head, dataset, tokens=tokens) for tokens, head in probe.heads.items()}
    return _make_samples(dataset, score(probe.terms, dataset), heads)


def cross_fit(
    dataset: Dataset,
    probe: Probe,
    settings: TrainingSettings,
    *,
    progress: Callable[[], object],
) -> ScoredSamples:
    """Score each fold's prompts by a probe and heads that were trained on the others' only.

    Blocks for ``num_folds`` trainings of each sum of terms, 1 to 2 s each for 300 prompts of 16.

    Args:
        dataset: The prompts that the probe was trained on.
        probe: Says which terms.
        settings: What the probe was trained with.
        progress: Called after each of its sums: its own and the heads'.

    Raises:
        DatasetError: What a term reads is not stored.
        TrainingError: There are fewer prompts with differing rewards than folds, a probe cannot be
            trained on all folds but one, or a head has a gate or a maximum.
    """
    questions = dataset.questions[dataset.groups]  # (samples,)
    prompts = np.unique(dataset.groups, return_inverse=True)[1]  # (samples,)
    folds = make_folds(
        dataset.rewards,
        dataset.groups,
        questions,
        num_folds=settings.num_folds,
        seed=settings.seed,
    ).numpy()[prompts]

    def fit_and_score(terms: Terms, tokens: int | None = None) -> Floats:
        scores = score_held_out(dataset, Design.of(terms), settings, folds, tokens=tokens)
        progress()
        return scores

    return _make_samples(
        dataset,
        fit_and_score(probe.terms),
        {tokens: fit_and_score(head, tokens) for tokens, head in probe.heads.items()},
    )


def _make_samples(dataset: Dataset, final: Floats, heads: dict[int, Floats]) -> ScoredSamples:
    num_tokens = np.array([len(each.token_ids) for each in dataset.samples], dtype=np.int64)
    return ScoredSamples(
        final, heads, num_tokens, dataset.rewards, dataset.groups, dataset.questions
    )
