"""What a probe is worth on prompts that it has not seen, and what is free beside it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.confidence import measure_confidence
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.metrics import choose_freely, compare, measure
from qprobe.evaluation.scoring import score, score_confidence
from qprobe.evaluation.votes import find_free_classes
from qprobe.probe.pooling import LOGPROB_NUMBERS
from qprobe.probe.probe import Probe
from qprobe.probe.terms import Terms
from qprobe.probe.values import NUMBERS
from qprobe.training.design import Design, has_logprobs, pose
from qprobe.training.fit import TrainingSettings, fit_inputs

__all__ = ["judge", "judge_held_out"]

Json = dict[str, Any]
Floats = NDArray[np.float64]


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
    metrics = measure(
        score(probe.terms, dataset),
        dataset,
        k=k,
        beta=beta,
        rivals=_score_by_numbers(probe.terms, dataset, known),
        classes=find_free_classes(dataset),
    )
    said = score_confidence(probe, dataset)
    if said is not None:
        metrics["confidence"] = measure_confidence(said, dataset)
    return metrics


def judge_held_out(terms: Terms, rewards: Floats, dataset: Dataset) -> Json:
    """Compare what a probe earns in cross-validation with what needs no probe.

    All samples of a prompt are the candidates, as there.

    Args:
        terms: The probe's.
        rewards: Shape (prompts,): what each prompt earns by a fit without it.
        dataset: What it was trained on.

    Returns:
        As ``judge`` does: ``num_questions``, ``gain`` and ``baselines``, the numbers alone among
        them, by fits of them that have not seen the prompt either.
    """
    bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)
    every, groups = dataset.rewards, dataset.groups
    free = _choose_among_all(dataset, _score_by_numbers(terms, dataset, None))
    base = expected_rewards(every, every, groups, k=1, beta=0)
    return {
        "num_questions": bootstrap.num_questions,
        "gain": bootstrap.mean(rewards - base).to_json("difference"),
        "baselines": {name: compare(rewards, each, bootstrap) for name, each in free.items()},
    }


def _choose_among_all(dataset: Dataset, rivals: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return what needs no probe earns among all samples of each prompt: (prompts,) each.

    NaN where it is not known, as the greedy answers of some prompts.
    """
    sizes, classes = dataset.num_samples, find_free_classes(dataset)
    found: dict[str, Floats] = {}
    for size in np.unique(sizes):
        prompts = np.flatnonzero(sizes == size)
        inside = sizes[dataset.groups] == size
        part = dataset.subset(prompts.tolist())
        here = choose_freely(
            part,
            int(size),
            classes=None if classes is None else classes[inside],
            rivals={name: each[inside] for name, each in rivals.items()},
        )
        for name, each in here.items():
            found.setdefault(name, np.full(len(sizes), np.nan))[prompts] = each
    return found


def _score_by_numbers(terms: Terms, dataset: Dataset, known: Dataset | None) -> dict[str, Floats]:
    """Score samples by a fit to the numbers alone, as ``numbers``; nothing if that teaches nothing.

    Likewise if the probe is all the numbers that are known, and nothing else. Of answers that an
    embeddings endpoint reads no numbers are known.
    """
    teaching = dataset if known is None else known
    if any(each.manifest.get("endpoint") is not None for each in (dataset, teaching)):
        return {}
    names: tuple[str, ...] = NUMBERS
    if not (has_logprobs(dataset) and has_logprobs(teaching)):
        names = tuple(each for each in NUMBERS if each not in LOGPROB_NUMBERS)
    if not terms.layers and set(names) <= set(terms.numbers):
        return {}
    design = Design((), names)
    try:
        problem = pose(teaching, TrainingSettings(objective="bt"))
        fitted = fit_inputs(problem, design.prepare(teaching, problem.order))
    except TrainingError:
        return {}
    if known is None:
        return {"numbers": fitted.held_out_scores}
    return {"numbers": score(design.to_terms(fitted), dataset)}
