"""The ways of choosing that are trained: what they read, how they are fitted and held out."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset, Reading
from qprobe.errors import TrainingError
from qprobe.evaluation.scoring import score
from qprobe.probe.terms import Terms
from qprobe.probe.values import NUMBERS
from qprobe.training.cross_validation import cross_validate
from qprobe.training.design import Design
from qprobe.training.fit import fit_inputs
from qprobe.training.inputs import Inputs
from qprobe.training.part import pose_part
from qprobe.training.settings import TrainingSettings

__all__ = [
    "BETA",
    "BOTH",
    "BOTH_BT",
    "CE",
    "MSE",
    "NUMBERS_ALONE",
    "NUM_FOLDS",
    "PG",
    "WAYS",
    "Way",
    "choose_reading",
    "fit_ways",
    "score_held_out",
]

Floats = NDArray[np.float64]
# The paper's.
BETA = 0.1
NUM_FOLDS = 8


@dataclass(frozen=True)
class Way:
    """What a probe reads, and its objective."""

    has_states: bool
    has_numbers: bool
    objective: str

    def __str__(self) -> str:
        read = ["states"] * self.has_states + ["five numbers"] * self.has_numbers
        return f"{' and '.join(read)}, {self.objective}"

    def design(self, reading: Reading | None) -> Design:
        """Return its terms."""
        readings = (reading,) if self.has_states and reading is not None else ()
        return Design(readings, NUMBERS if self.has_numbers else ())


STATES = {
    each: Way(has_states=True, has_numbers=False, objective=each)
    for each in ("mse", "ce", "bt", "ppo", "pg")
}
MSE, CE, PG = (STATES[each] for each in ("mse", "ce", "pg"))
NUMBERS_ALONE = Way(has_states=False, has_numbers=True, objective="ce")
BOTH = Way(has_states=True, has_numbers=True, objective="ce")
BOTH_BT = Way(has_states=True, has_numbers=True, objective="bt")
WAYS = (*STATES.values(), NUMBERS_ALONE, BOTH, BOTH_BT)


def choose_reading(dataset: Dataset, candidates: Sequence[Reading]) -> Reading:
    """Return the reading whose probe earns most in cross-validation, by ``ce``.

    Raises:
        TrainingError: The dataset teaches nothing.
    """
    if len(candidates) == 1:
        return candidates[0]
    problem = pose_part(dataset, TrainingSettings(objective="ce", beta=BETA))

    def earn(reading: Reading) -> float:
        tried = cross_validate(problem, Design((reading,)).prepare(dataset, problem.order))
        return float(tried.rewards[tried.best].mean())

    return max(candidates, key=earn)


def fit_ways(
    dataset: Dataset, ways: Sequence[Way], candidates: Sequence[Reading]
) -> dict[Way, Terms]:
    """Train probes on all of a dataset; those that it is too little for are left out.

    All that read states read the same, chosen by ``choose_reading``.
    """
    found: dict[Way, Terms] = {}
    prepared: dict[Design, Inputs] = {}
    reading = None
    if any(way.has_states for way in ways):
        with suppress(TrainingError):
            reading = choose_reading(dataset, candidates)
    for way in ways:
        if way.has_states and reading is None:
            continue
        design = way.design(reading)
        with suppress(TrainingError):
            problem = pose_part(dataset, TrainingSettings(objective=way.objective, beta=BETA))
            if design not in prepared:
                prepared[design] = design.prepare(dataset, problem.order)
            found[way] = design.to_terms(fit_inputs(problem, prepared[design]))
    return found


def score_held_out(
    dataset: Dataset,
    ways: Sequence[Way],
    candidates: Sequence[Reading],
    *,
    progress: Callable[[], object] = lambda: None,
) -> dict[Way, Floats]:
    """Score every prompt by probes of the folds that it is not in: (samples,) for each way.

    The reading is chosen, as are weight decays, on those folds alone. A way that cannot be trained
    without one of the folds is left out.

    Args:
        dataset: With more prompts than there are folds.
        ways: What is trained.
        candidates: Readings to choose from.
        progress: Called after each of eight folds.
    """
    questions = dataset.questions
    folds = np.random.default_rng(0).permutation(int(questions.max()) + 1)[questions] % NUM_FOLDS
    scores = {way: np.full(len(dataset.samples), np.nan) for way in ways}
    for fold in range(NUM_FOLDS):
        known, rest = (np.flatnonzero(each).tolist() for each in (folds != fold, folds == fold))
        held_out = dataset.subset(rest)
        for way, terms in fit_ways(dataset.subset(known), ways, candidates).items():
            scores[way][np.isin(dataset.groups, rest)] = score(terms, held_out)
        progress()
    return {way: each for way, each in scores.items() if np.isfinite(each).all()}
