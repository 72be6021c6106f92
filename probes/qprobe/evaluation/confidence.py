"""Whether a probe knows how good an answer is, whatever the other answers are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.evaluation.bootstrap import LEVEL, NUM_RESAMPLES, Bootstrap

__all__ = ["SHARES", "measure_confidence"]

Json = dict[str, Any]
Floats = NDArray[np.float64]

# Of the answers kept, those of the highest confidence.
SHARES = tuple(round(share / 20, 2) for share in range(20, 0, -1))
_NUM_BINS = 10
_SEED = 20241018
_MAX_ELEMENTS = 2**22


def measure_confidence(said: Floats, dataset: Dataset) -> Json:
    """Compare the rewards that a probe expects with those that came.

    Every sample counts as the one answer to its prompt, as with k = 1.

    Args:
        said: Shape (samples,): the expected reward of each.
        dataset: At least 2 prompts, not trained on.

    Returns:
        In JSON types, ``low`` and ``high`` bounding 95 % intervals over prompts: ``ece``, the
        expected calibration error (Naeini et al. 2015): the mean over samples of the distance
        between the mean ``said`` and the mean reward of their bin, in 10 bins of equally many
        samples, save for ties. By chance it is above 0 whatever the probe, so that beside it stands
        what it would be of one that is perfectly calibrated: ``calibrated``, the mean, and
        ``calibrated_most``, not exceeded 95 % of the time. Then ``bins``; ``brier``, the mean
        square of reward minus ``said``, and ``brier_constant``, that of always saying the mean
        reward; ``kept``, the mean reward of the answers of the highest confidence, by their share.
        For rewards from 0 to 1 also ``log_loss``
        and ``auroc``: how often, of two samples of any prompts, the good one has the higher
        confidence, ties half (a reward between counts as good in that part); else None.
    """
    rewards, groups = dataset.rewards, dataset.groups
    bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)

    def average(values: Floats, *, where: NDArray[np.bool_] | None = None) -> Json:
        kept = np.ones(len(values)) if where is None else where.astype(float)
        num = len(dataset.prompts)
        above, below = (np.bincount(groups, each, num) for each in (values * kept, kept))
        return bootstrap.ratio(above.astype(float), below.astype(float)).to_json("value")

    bounded = bool((rewards >= 0).all() and (rewards <= 1).all())
    clipped = said.clip(1e-12, 1 - 1e-12)
    edges = np.unique(np.quantile(said, np.linspace(0, 1, _NUM_BINS + 1)))
    places = np.searchsorted(edges[1:-1], said, side="right")  # (samples,)
    return {
        "ece": _find_ece(rewards - said, places, dataset.questions[groups]),
        "brier": average((rewards - said) ** 2),
        "brier_constant": average((rewards - rewards.mean()) ** 2),
        "log_loss": average(-rewards * np.log(clipped) - (1 - rewards) * np.log1p(-clipped))
        if bounded
        else None,
        "auroc": _find_auroc(said, rewards, groups, bootstrap) if bounded else None,
        "bins": [
            {
                "said": float(said[places == place].mean()),
                "num_samples": int((places == place).sum()),
                **_as_reward(average(rewards, where=places == place)),
            }
            for place in np.unique(places)
        ],
        "kept": [
            {
                "share": share,
                "threshold": float(bound),
                **_as_reward(average(rewards, where=said >= bound)),
            }
            for share, bound in ((each, np.quantile(said, 1 - each)) for each in SHARES)
        ],
    }


def _as_reward(row: Json) -> Json:
    return {"reward": row["value"], "low": row["low"], "high": row["high"]}


def _find_ece(
    excess: Floats, places: NDArray[np.int64], questions: NDArray[np.int64]
) -> dict[str, float]:
    """Return it, and what it would be if each question's excess were as likely of the other sign.

    Resamples of the questions would add to it once more what chance has added.

    Args:
        excess: Shape (samples,): reward minus ``said``.
        places: The bin of each.
        questions: What each answers, numbered from 0. Answers to one may all be better than said.
    """
    sums = np.zeros((int(questions.max()) + 1, int(places.max()) + 1))  # (questions, bins)
    np.add.at(sums, (questions, places), excess)
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], size=(NUM_RESAMPLES, len(sums)))
    draws = np.abs(signs @ sums).sum(axis=1) / len(excess)
    return {
        "value": float(np.abs(sums.sum(axis=0)).sum() / len(excess)),
        "calibrated": float(draws.mean()),
        "calibrated_most": float(np.quantile(draws, LEVEL)),
    }


def _find_auroc(
    said: Floats, rewards: Floats, groups: NDArray[np.int64], bootstrap: Bootstrap
) -> Json | None:
    if not 0 < rewards.mean() < 1:
        return None
    order = np.argsort(said, kind="stable")
    starts = np.flatnonzero(np.diff(said[order], prepend=-np.inf))
    good, bad = rewards[order], 1 - rewards[order]

    def measure(weights: Floats) -> Floats:
        """Return it for each row of weights of the samples in order: (rows, samples)."""
        up = np.add.reduceat(weights * good, starts, axis=1)  # (rows, different values)
        down = np.add.reduceat(weights * bad, starts, axis=1)
        below = np.cumsum(down, axis=1) - down / 2
        pairs = up.sum(axis=1) * down.sum(axis=1)
        return np.asarray((up * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))

    size = max(1, _MAX_ELEMENTS // len(said))
    counts = bootstrap.counts
    draws = np.concatenate(
        [
            measure(counts[first : first + size][:, groups[order]])
            for first in range(0, len(counts), size)
        ]
    )
    value = float(measure(np.ones((1, len(said))))[0])
    return bootstrap.around(value, draws[np.isfinite(draws)]).to_json("value")
