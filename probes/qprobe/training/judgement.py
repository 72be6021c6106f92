"""What a probe is worth on prompts that it has not seen, and what is free beside it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.confidence import measure_confidence
from qprobe.evaluation.metrics import measure
from qprobe.evaluation.scoring import score, score_confidence
from qprobe.evaluation.votes import find_free_classes
from qprobe.probe.pooling import LOGPROB_NUMBERS
from qprobe.probe.probe import Probe
from qprobe.probe.values import NUMBERS
from qprobe.training.design import Design, has_logprobs
from qprobe.training.fit import TrainingSettings, fit_probe

__all__ = ["judge"]

Json = dict[str, Any]


def judge(probe: Probe, dataset: Dataset, *, known: Dataset | None, k: int, beta: float) -> Json:
    """Measure a probe; blocks for seconds on large datasets.

    Args:
        probe: What it reads must be stored.
        dataset: Prompts that it was not trained on, at least 2 with at least k samples each.
        known: Those that it was trained on, if they are at hand: on them the numbers are weighed
            that a probe must beat. None weighs them on other prompts of ``dataset`` each.
        k: How many samples to choose among.
        beta: In units of score, finite, >= 0.

    Returns:
        What ``measure`` returns, in JSON types, with the numbers alone among the baselines, unless
        the probe is all of them itself; and, if it has one, ``confidence``, what
        ``measure_confidence`` returns.

    Raises:
        QProbeError: Something is not stored, or an argument is out of range.
    """
    numbers = _score_by_numbers(probe, dataset, known)
    metrics = measure(
        score(probe.terms, dataset),
        dataset,
        k=k,
        beta=beta,
        rivals={} if numbers is None else {"numbers": numbers},
        classes=find_free_classes(dataset),
    )
    said = score_confidence(probe, dataset)
    if said is not None:
        metrics["confidence"] = measure_confidence(said, dataset)
    return metrics


def _score_by_numbers(
    probe: Probe, dataset: Dataset, known: Dataset | None
) -> NDArray[np.float64] | None:
    """Score samples by a fit to the numbers alone; None if they, or rewards, teach nothing.

    Likewise if the probe is all the numbers that are known, and nothing else. Of answers that an
    embeddings endpoint reads no numbers are known.
    """
    teaching = dataset if known is None else known
    if any(each.manifest.get("endpoint") is not None for each in (dataset, teaching)):
        return None
    names: tuple[str, ...] = NUMBERS
    if not (has_logprobs(dataset) and has_logprobs(teaching)):
        names = tuple(each for each in NUMBERS if each not in LOGPROB_NUMBERS)
    if not probe.terms.layers and set(names) <= set(probe.terms.numbers):
        return None
    columns = Design((), names).read(teaching)
    try:
        fitted = fit_probe(
            columns.blocks,
            teaching.rewards,
            teaching.groups,
            TrainingSettings(objective="bt"),
            teaching.questions[teaching.groups],
            numbers=columns.numbers,
        )
    except TrainingError:
        return None
    if known is None:
        return fitted.held_out_scores
    return fitted.score([], Design((), names).read(dataset).numbers).double().numpy()
