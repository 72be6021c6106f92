"""How sure a probe may be: from its scores of prompts that it was not trained on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import MIN_PROMPTS
from qprobe.probe.confidence import Calibration, Confidence, Isotonic, Platt
from qprobe.probe.terms import Terms
from qprobe.training.cross_validation import Problem
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_inputs
from qprobe.training.inputs import Inputs

__all__ = ["find_confidence", "fit_isotonic", "fit_platt"]

Floats = NDArray[np.float64]


def find_confidence(
    dataset: Dataset,
    to_terms: Callable[[FittedProbe], Terms],
    inputs: Inputs,
    fitted: FittedProbe,
    settings: TrainingSettings,
) -> tuple[Confidence | None, str | None]:
    """Return the confidence of a probe, or None and why there is none.

    A probe that was trained to compare answers of one prompt need not know which prompts are hard.
    So a second sum of the same terms is trained on every sample by itself, with ``ce`` for rewards
    from 0 to 1 and ``mse`` for others, and taken if it says more of prompts held out.

    Args:
        dataset: What the probe was trained on.
        to_terms: Gives the terms of a fit to its columns.
        inputs: What they read there, prepared.
        fitted: The probe.
        settings: What it was trained with.
    """
    rewards, questions = dataset.rewards, dataset.questions[dataset.groups]
    num_questions = len(np.unique(questions))
    if num_questions < MIN_PROMPTS:
        return None, (
            f"the probe has no confidence: {num_questions} prompts are too few to learn it from, "
            f"{MIN_PROMPTS} are needed"
        )
    bounded = bool((rewards >= 0).all() and (rewards <= 1).all())
    fit = fit_platt if bounded else fit_isotonic
    calibration = fit(fitted.held_out_scores, rewards)
    found = Confidence(calibration)
    scores = fitted.held_out_scores
    pointwise = replace(settings, objective="ce" if bounded else "mse", per_prompt=False)
    if pointwise != settings:
        try:
            own = fit_inputs(Problem(rewards, dataset.groups, pointwise, questions), inputs)
        except TrainingError:  # the probe's own will do
            own = None
        if own is not None:
            other = fit(own.held_out_scores, rewards)
            if _measure_loss(other, own.held_out_scores, rewards) < _measure_loss(
                calibration, scores, rewards
            ):
                found, scores = Confidence(other, to_terms(own)), own.held_out_scores
    ends = found.calibration.apply(np.quantile(scores, [0, 1]))
    if not ends[0] < ends[1]:
        return None, (
            "the probe has no confidence: on prompts held out a higher score does not mean a "
            "higher reward"
        )
    return found, None


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

    Its knots are the blocks that pooling adjacent violators finds, each at its mean score.
    """
    places, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, rewards) / counts
    fitted = isotonic_regression(means, weights=counts)
    starts = fitted.blocks[:-1]
    weights = np.add.reduceat(counts, starts)
    knots = np.add.reduceat(places * counts, starts) / weights
    return Isotonic(tuple(knots.tolist()), tuple(fitted.x[starts].tolist()))


def _measure_loss(calibration: Calibration, scores: Floats, rewards: Floats) -> float:
    """Return the log loss of a probability, or else the mean square."""
    said = calibration.apply(scores)
    if isinstance(calibration, Platt):
        said = said.clip(1e-12, 1 - 1e-12)
        return float(-(rewards * np.log(said) + (1 - rewards) * np.log1p(-said)).mean())
    return float(((said - rewards) ** 2).mean())
