"""How much a probe gains from more prompts to train on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.scoring import score
from qprobe.training.design import Design
from qprobe.training.fit import TrainingSettings
from qprobe.training.part import fit_part

__all__ = ["SIZES", "learning_curve"]

Json = dict[str, Any]
Floats = NDArray[np.float64]

SIZES = (5, 10, 20, 50, 100, 200, 400)
_NUM_ORDERS = 5
_SEED = 20240715


def learning_curve(
    development: Dataset,
    test: Dataset,
    *,
    design: Design,
    settings: TrainingSettings,
    k: int,
    sizes: Sequence[int] = SIZES,
    progress: Callable[[int], object] = lambda total: None,
) -> list[Json]:
    """Train on the first prompts of 5 random orders, and on all; blocks for as many trainings.

    A set with fewer prompts of differing rewards than folds takes fewer folds. One that no probe
    can be trained on even so counts as the base model: that is what one would be left with.

    Args:
        development: What to train on.
        test: At least 2 other prompts, with at least k samples each.
        design: What is trained; stored in both.
        settings: Of every training; beta also of the evaluation.
        k: How many samples to choose among.
        sizes: Numbers of prompts, at least 2; those not below the number of all are left out. All
            prompts always come last.
        progress: Called after each training with the number of all.

    Returns:
        A row for each size: ``num_prompts``, ``reward`` (mean over orders, on the test prompts),
        ``low`` and ``high``, and ``runs``, the reward of each order. Intervals resample both orders
        and test prompts; as orders share prompts, they are too narrow near the full size.

    Raises:
        TrainingError: No probe can be trained on all prompts.
        EvaluationError: The test prompts cannot be evaluated.
    """
    total = len(development.prompts)
    columns = design.read(development)
    bootstrap = Bootstrap(len(test.prompts), test.questions)
    rng = np.random.default_rng(_SEED)
    orders = [rng.permutation(total) for _ in range(_NUM_ORDERS)]

    def expect(scores: Floats) -> Floats:
        return expected_rewards(scores, test.rewards, test.groups, k=k, beta=settings.beta)

    def run(prompts: Sequence[int]) -> Floats:
        rows = np.flatnonzero(np.isin(development.groups, prompts))
        fitted = fit_part(development, columns, rows, settings)
        return expect(score(design.to_terms(fitted), test))

    # First, so that what no set of prompts can be trained with is an error, not the base model.
    curve = {total: run(range(total))[None]}
    fewer = sorted({each for each in sizes if 2 <= each < total})
    num_trainings = 1 + _NUM_ORDERS * len(fewer)
    progress(num_trainings)
    for size in fewer:
        found = []
        for order in orders:
            try:
                found.append(run(order[:size].tolist()))
            except TrainingError:
                found.append(expect(np.zeros(len(test.rewards))))
            progress(num_trainings)
        curve[size] = np.array(found)
    return [
        {
            "num_prompts": size,
            **bootstrap.mean_of_runs(curve[size]).to_json("reward"),
            "runs": curve[size].mean(axis=1).tolist(),
        }
        for size in sorted(curve)
    ]
