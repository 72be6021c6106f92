"""Scores of a probe and its heads on a dataset, and such scores of prompts that it was trained on.

The latter are cross-fitted: a probe that has seen a sample's reward ranks it better than it will
rank any other.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.data.reading import Reading
from qprobe.errors import EvaluationError
from qprobe.probe.network import Probe, ProbeInfo
from qprobe.rejection.simulation import ScoredSamples
from qprobe.training.fit import TrainingSettings, fit_probe

__all__ = ["cross_fit", "score_samples"]

Floats = NDArray[np.float64]


def score_samples(probe: Probe, dataset: Dataset) -> ScoredSamples:
    """Score a dataset as the server would: whole completions, and beginnings at each checkpoint.

    Raises:
        DatasetError: The probe's reading, or that of a checkpoint, is not stored.
    """
    final, heads = Reading.of(probe.info), Reading.of_heads(probe.info)
    return _make_samples(
        dataset,
        probe.score(dataset.features(final)).double().numpy(),
        {
            tokens: probe.score_head(tokens, dataset.features(reading)).double().numpy()
            for tokens, reading in heads.items()
        },
    )


def cross_fit(
    dataset: Dataset,
    info: ProbeInfo,
    settings: TrainingSettings,
    *,
    progress: Callable[[], object],
) -> ScoredSamples:
    """Score each fold's prompts by a probe and heads that were trained on the others' only.

    Blocks for ``num_folds`` trainings of each reading, 1 to 2 s each for 300 prompts of 16.

    Args:
        dataset: The prompts that the probe was trained on.
        info: The probe's; says which readings.
        settings: What the probe was trained with; heads are linear whatever it says.
        progress: Called after each reading.

    Raises:
        DatasetError: A reading is not stored.
        EvaluationError: There are fewer prompts than folds.
        TrainingError: A probe cannot be trained on all folds but one.
    """
    num_folds = settings.num_folds
    questions = dataset.questions[dataset.groups]  # (samples,)
    num_questions = int(questions.max(initial=-1)) + 1
    if num_questions < num_folds:
        raise EvaluationError(
            "folds", f"must be at most {num_questions}, the different prompts, got {num_folds}"
        )
    order = np.random.default_rng(settings.seed).permutation(num_questions)
    folds = np.empty_like(order)
    folds[order] = np.arange(len(order)) % num_folds
    sample_folds = folds[questions]

    def score(reading: Reading, settings: TrainingSettings) -> Floats:
        features, scores = dataset.features(reading), np.empty(len(dataset.groups))
        for fold in range(num_folds):
            known = np.flatnonzero(sample_folds != fold)
            rest = np.flatnonzero(sample_folds == fold)
            fitted = fit_probe(
                features[known],
                dataset.rewards[known],
                dataset.groups[known],
                settings,
                questions[known],
            )
            scores[rest] = fitted.score(features[rest]).double().numpy()
        progress()
        return scores

    final, heads = Reading.of(info), Reading.of_heads(info)
    linear = replace(settings, hidden=())
    return _make_samples(
        dataset,
        score(final, settings),
        {tokens: score(reading, linear) for tokens, reading in heads.items()},
    )


def _make_samples(dataset: Dataset, final: Floats, heads: dict[int, Floats]) -> ScoredSamples:
    num_tokens = np.array([len(each.token_ids) for each in dataset.samples], dtype=np.int64)
    return ScoredSamples(final, heads, num_tokens, dataset.rewards, dataset.groups)
