"""How sure a probe may be: from its scores of prompts that it was not trained on."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.stats import t as student

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import LEVEL, MIN_PROMPTS, average_by, find_error
from qprobe.probe.confidence import Calibration, Confidence, Isotonic, Platt
from qprobe.probe.terms import Terms
from qprobe.training.design import pose
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_inputs
from qprobe.training.inputs import Inputs

__all__ = ["choose_own_settings", "find_confidence", "fit_isotonic", "fit_platt"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# How many samples a level of an isotonic curve is the mean of, at least, and which share of all.
_MIN_BLOCK, _MIN_BLOCK_SHARE = 10, 0.05


def find_confidence(
    dataset: Dataset,
    to_terms: Callable[[FittedProbe], Terms],
    inputs: Inputs,
    fitted: FittedProbe,
    settings: TrainingSettings,
    *,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Confidence | None, str | None]:
    """Return the confidence of a probe, or None and why there is none.

    A probe that was trained to compare answers of one prompt need not know which prompts are hard.
    So a second sum of the same terms is trained on every sample by itself, with ``ce`` for rewards
    from 0 to 1 and ``mse`` for others, and taken if it says more of prompts held out. Its weight
    decay is the one whose curve says most of them, whatever a choice by it would earn. There is
    none unless the 95 % interval, by Student's t over questions, of what it says more of these than
    the mean reward does lies above 0.

    Args:
        dataset: What the probe was trained on.
        to_terms: Gives the terms of a fit to its columns.
        inputs: What they read there, prepared.
        fitted: The probe.
        settings: What it was trained with.
        progress: Given to the fit of the second sum, if there is one.
    """
    num_questions = _count_questions(dataset)
    if num_questions < MIN_PROMPTS:
        return None, (
            f"the probe has no confidence: {num_questions} prompts are too few to learn it from, "
            f"{MIN_PROMPTS} are needed"
        )
    fit = fit_platt if _are_bounded(dataset.rewards) else fit_isotonic
    folds = [each.numpy() for each in pose(dataset, settings).places]

    def gain(scores: Floats) -> Floats:
        return _measure_gains(fit, scores, dataset.rewards, folds)

    tried: list[tuple[FittedProbe, Terms | None]] = [(fitted, None)]
    pointwise = choose_own_settings(dataset, settings)
    if pointwise is not None:
        with suppress(TrainingError):  # nothing was learnt: then the probe's own will do
            own = fit_inputs(
                pose(dataset, pointwise),
                inputs,
                criterion=lambda scores: average_by(dataset.groups, gain(scores)),
                progress=progress,
            )
            tried.append((own, to_terms(own)))
    best, most = None, 0.0
    for each, terms in tried:
        scores = each.held_out_scores
        calibration = fit(scores, dataset.rewards)
        lowest, highest = calibration.apply(np.quantile(scores, [0, 1]))
        gained = _find_sure_gain(gain(scores), dataset.questions[dataset.groups])
        if lowest < highest and gained > most:
            best, most = Confidence(calibration, terms), gained
    if best is None:
        return None, (
            "the probe has no confidence: on prompts held out its score says no more of the "
            "reward than the mean reward does"
        )
    return best, None


def _find_sure_gain(gains: Floats, questions: Ints) -> float:
    """Return the mean of gains over questions, (samples,) each; 0 if its interval is not above 0.

    With one standard error for an interval one in ten data sets of noise had a confidence.
    """
    mean = float(average_by(questions, gains).mean())
    num_errors = student.ppf((1 + LEVEL) / 2, len(np.unique(questions)) - 1)
    return mean if mean > num_errors * find_error(questions, gains) else 0.0


def choose_own_settings(dataset: Dataset, settings: TrainingSettings) -> TrainingSettings | None:
    """Return what a second sum is trained with; None if there is none, as the probe's is as good.

    Arguments are those of ``find_confidence``.
    """
    objective = "ce" if _are_bounded(dataset.rewards) else "mse"
    pointwise = replace(settings, objective=objective, per_prompt=False)
    if pointwise == settings or _count_questions(dataset) < MIN_PROMPTS:
        return None
    return pointwise


def _are_bounded(rewards: Floats) -> bool:
    return bool((rewards >= 0).all() and (rewards <= 1).all())


def _count_questions(dataset: Dataset) -> int:
    return len(np.unique(dataset.questions[dataset.groups]))


def fit_platt(scores: Floats, rewards: Floats) -> Platt:
    """Return the logistic curve of rewards from 0 to 1 by scores, (samples,) each (Platt 1999).

    Rewards are taken for a little less certain than they are, as Platt's targets: otherwise scores
    that part all rewards would give an infinite slope.
    """
    num, good = len(rewards), float(rewards.sum())
    high, low = (good + 1) / (good + 2), 1 / (num - good + 2)
    targets = low + (high - low) * rewards
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    units = (scores - centre) / spread

    def loss(found: Floats) -> tuple[float, Floats]:
        logits = found[0] * units + found[1]
        value = np.logaddexp(0.0, logits) - targets * logits
        rest = np.exp(-np.logaddexp(0.0, -logits)) - targets
        return float(value.mean()), np.array([(rest * units).mean(), rest.mean()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    slope = float(slope) / spread
    return Platt(slope, float(intercept) - slope * centre)


def fit_isotonic(scores: Floats, rewards: Floats) -> Isotonic:
    """Return the best never falling curve of rewards by scores, (samples,) each.

    Its knots are the blocks that pooling adjacent violators finds, each at its mean score. Blocks
    are joined until each has 10 samples and 5 % of them: the mean of a few is mostly noise, and
    the ends of the curve would be the best and the worst of it.
    """
    places, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, rewards) / counts
    fitted = isotonic_regression(means, weights=counts)
    least = max(_MIN_BLOCK, _MIN_BLOCK_SHARE * len(scores))
    starts = _join_blocks(fitted.blocks, np.concatenate([[0], counts.cumsum()]), least)
    weights = np.add.reduceat(counts, starts)
    knots = np.add.reduceat(places * counts, starts) / weights
    levels = np.add.reduceat(means * counts, starts) / weights
    # Rounding must not let equal levels fall.
    return Isotonic(tuple(knots.tolist()), tuple(np.maximum.accumulate(levels).tolist()))


def _join_blocks(bounds: Ints, before: Ints, least: float) -> list[int]:
    """Return where blocks of at least so many samples start, one at least.

    Args:
        bounds: Shape (blocks + 1,): places of the old ones' starts, and of the end.
        before: Shape (places + 1,): how many samples there are before each place.
        least: How many samples.
    """
    starts = [0]
    for start in bounds[1:-1].tolist():
        if min(before[start] - before[starts[-1]], before[-1] - before[start]) >= least:
            starts.append(start)
    return starts


def _measure_gains(
    fit: Callable[[Floats, Floats], Calibration],
    scores: Floats,
    rewards: Floats,
    folds: Sequence[Ints],
) -> Floats:
    """Return by how much a curve loses less than a constant, both of other folds: (samples,).

    Args:
        fit: Makes the curve.
        scores: Shape (samples,): each by a fit without its fold.
        rewards: Likewise.
        folds: The samples of each; those that answer one question are never in two.
    """
    gains = np.empty(len(rewards))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(rewards)), fold)
        calibration, mean = fit(scores[others], rewards[others]), rewards[others].mean()
        measure = _log_loss if isinstance(calibration, Platt) else _square_loss
        constant = measure(np.full(len(fold), mean), rewards[fold])
        gains[fold] = constant - measure(calibration.apply(scores[fold]), rewards[fold])
    return gains


def _log_loss(said: Floats, rewards: Floats) -> Floats:
    said = said.clip(1e-12, 1 - 1e-12)
    return np.asarray(-(rewards * np.log(said) + (1 - rewards) * np.log1p(-said)))


def _square_loss(said: Floats, rewards: Floats) -> Floats:
    return np.asarray((said - rewards) ** 2)
