"""How good a probe's scores are, by expected reward on the samples of a dataset.

Owns what ``metrics.json`` holds. All figures are expectations, so none depends on a draw; intervals
are over prompts (see ``bootstrap``). Needs the scores only, so it knows nothing of training.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from qprobe.data.dataset import Dataset
from qprobe.errors import EvaluationError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expect, expected_rewards, expected_vote_rewards

__all__ = ["BETAS", "choose_freely", "compare", "measure", "rank_within_prompts"]

Json = dict[str, Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# In units of score, whose standard deviation within a prompt is 1: from the best to the base model.
BETAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
_NUM_BINS = 10
_CORRELATION_EDGES = np.linspace(-1, 1, 21)
_ABOUT = ("model", "reward", "sampling", "hidden_size", "num_layers")


def measure(
    scores: Floats,
    dataset: Dataset,
    *,
    k: int,
    beta: float,
    rivals: Mapping[str, Floats] | None = None,
    classes: Ints | None = None,
) -> Json:
    """Measure what resampling by these scores is worth; blocks for seconds on large datasets.

    Args:
        scores: Shape (samples,), of the dataset's samples, finite; on the scale of ``beta``.
        dataset: At least 2 prompts with at least k samples each.
        k: How many samples to choose among.
        beta: In units of score, finite, >= 0.
        rivals: Other scores of the samples, by name, of which the best is taken: baselines too.
        classes: Shape (samples,): equal numbers for equal answers to one prompt, or NO_CLASS. With
            them, the majority vote is among the baselines.

    Returns:
        In JSON types: ``base``, ``ceiling`` (best of k by reward), ``policy`` (k samples at beta),
        ``gain`` (policy - base), ``gap_closed`` ((policy - base) / (ceiling - base), or None),
        ``resampled`` and ``ceilings`` over k and beta, ``kl``, ``baselines``, ``correlation``,
        ``calibration``, ``dataset``, and counts (``num_questions``: of prompts
        that ask the same as one). ``low`` and ``high`` bound 95 % intervals.

    Raises:
        EvaluationError: An argument is not as said above; it is named.
    """
    scores = np.asarray(scores, dtype=np.float64)
    rewards, groups = dataset.rewards, dataset.groups
    if not math.isfinite(beta):
        raise EvaluationError("beta", f"must be finite, got {beta!r}")
    bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)
    policy = expect(scores, rewards, groups, k=k, beta=beta)  # checks the arguments too
    base = expected_rewards(scores, rewards, groups, k=1, beta=0)
    ceiling = expected_rewards(rewards, rewards, groups, k=k, beta=0)
    num_choices = _grid(int(dataset.num_samples.min()), k)
    baselines = choose_freely(dataset, k, classes=classes, rivals=rivals)
    by_k = _vary(scores, dataset, bootstrap, [(each, beta) for each in num_choices])
    by_beta = _vary(scores, dataset, bootstrap, [(k, each) for each in BETAS if each != beta])
    return {
        **_describe(dataset),
        "num_questions": bootstrap.num_questions,
        "k": k,
        "beta": float(beta),
        "base": bootstrap.mean(base).to_json("reward"),
        "ceiling": bootstrap.mean(ceiling).to_json("reward"),
        "policy": {
            **bootstrap.mean(policy.rewards).to_json("reward"),
            "kl": float(policy.kl.mean()),
            "monte_carlo_error": _error_of_mean(policy.errors),
        },
        "gain": bootstrap.mean(policy.rewards - base).to_json("difference"),
        "gap_closed": _gap_closed(bootstrap, policy.rewards - base, ceiling - base),
        "resampled": by_k + by_beta,
        "ceilings": _vary(rewards, dataset, bootstrap, [(each, 0.0) for each in num_choices]),
        "kl": {
            "frontier": _frontier(row for row in by_k + by_beta if row["k"] == k),
            "best_of_k": _best_of_k(scores, dataset, num_choices),
        },
        "baselines": {
            name: compare(policy.rewards, values, bootstrap) for name, values in baselines.items()
        },
        "correlation": _correlate(scores, rewards, groups, bootstrap),
        "calibration": _calibrate(scores, rewards, groups, bootstrap),
    }


def _describe(dataset: Dataset) -> Json:
    sizes = dataset.num_samples
    return {
        "dataset": {name: dataset.manifest[name] for name in _ABOUT if name in dataset.manifest},
        "num_prompts": len(sizes),
        "num_samples": len(dataset.samples),
        "num_samples_per_prompt": [int(sizes.min()), int(sizes.max())],
    }


def compare(policy: Floats, others: Floats, bootstrap: Bootstrap) -> Json:
    """Return what a baseline earns, and what the policy earns more: (prompts,) each."""
    return {
        **bootstrap.mean(others).to_json("reward"),
        "num_prompts": int(np.isfinite(others).sum()),
        "policy_minus_baseline": bootstrap.mean(policy - others).to_json("difference"),
    }


def _grid(n: int, k: int) -> list[int]:
    """Return the powers of two below n, n and k."""
    return sorted({2**power for power in range(n.bit_length()) if 2**power < n} | {n, k})


def _error_of_mean(errors: Floats) -> float:
    """Return the Monte-Carlo error of a mean over prompts, whose errors are independent."""
    return float(np.sqrt((errors**2).sum()) / len(errors))


def _gap_closed(bootstrap: Bootstrap, gains: Floats, gaps: Floats) -> Json | None:
    return bootstrap.ratio(gains, gaps).to_json("share") if gaps.sum() > 0 else None


def _vary(
    scores: Floats, dataset: Dataset, bootstrap: Bootstrap, settings: Sequence[tuple[int, float]]
) -> list[Json]:
    rows = []
    for k, beta in settings:
        found = expect(scores, dataset.rewards, dataset.groups, k=k, beta=beta)
        rows.append(
            {
                "k": k,
                "beta": float(beta),
                **bootstrap.mean(found.rewards).to_json("reward"),
                "kl": float(found.kl.mean()),
                "monte_carlo_error": _error_of_mean(found.errors),
            }
        )
    return rows


def _frontier(rows: Iterable[Json]) -> list[Json]:
    """Reward against KL by beta. KL is the mean of log k - H(weights), so log k at beta 0."""
    return [
        {name: row[name] for name in ("beta", "kl", "reward")}
        for row in sorted(rows, key=lambda row: float(row["beta"]))
    ]


def _best_of_k(scores: Floats, dataset: Dataset, num_choices: Sequence[int]) -> list[Json]:
    """Reward against KL by k at beta 0, at most log k - (k - 1) / k (Beirami et al. 2024)."""
    rows = []
    for k in num_choices:
        rewards = expected_rewards(scores, dataset.rewards, dataset.groups, k=k, beta=0)
        kl = math.log(k) - (k - 1) / k
        rows.append({"k": k, "kl": kl, "reward": float(rewards.mean())})
    return rows


def choose_freely(
    dataset: Dataset,
    k: int,
    *,
    classes: Ints | None = None,
    rivals: Mapping[str, Floats] | None = None,
) -> dict[str, Floats]:
    """Return the expected rewards of what needs no probe, (prompts,) each, NaN where unknown.

    Arguments are those of ``measure``.
    """
    rewards, groups, found = dataset.rewards, dataset.groups, {}
    if np.isfinite(dataset.greedy_rewards).any():
        found["greedy"] = dataset.greedy_rewards
    totals = np.array([each.logprob for each in dataset.samples], dtype=np.float64)
    if np.isfinite(totals).all():
        # An embeddings endpoint, if one has read, tells of no tokens.
        if dataset.manifest.get("endpoint") is None:
            lengths = np.array([max(1, len(each.token_ids)) for each in dataset.samples])
            found["best_by_mean_logprob"] = expected_rewards(
                totals / lengths, rewards, groups, k=k, beta=0
            )
        found["best_by_logprob"] = expected_rewards(totals, rewards, groups, k=k, beta=0)
    if classes is not None:
        even = np.zeros(len(rewards))
        found["majority_vote"] = expected_vote_rewards(even, classes, rewards, groups, k=k, beta=0)
    for name, scores in (rivals or {}).items():
        found[name] = expected_rewards(scores, rewards, groups, k=k, beta=0)
    return found


def _correlate(scores: Floats, rewards: Floats, groups: Ints, bootstrap: Bootstrap) -> Json:
    """Correlate scores and rewards within prompts, over those where both vary.

    ``auc`` is how often the better of two samples of a prompt scores higher, ties half: the area
    under the ROC curve if rewards are 0 or 1.
    """
    pieces = [np.flatnonzero(groups == prompt) for prompt in range(int(groups[-1]) + 1)]
    rows = np.array([_correlate_prompt(scores[piece], rewards[piece]) for piece in pieces])
    found: Json = {"num_prompts": int(np.isfinite(rows[:, 0]).sum())}
    for name, values in zip(("pearson", "spearman", "auc"), rows.T, strict=True):
        there = np.isfinite(values).any()
        found[name] = bootstrap.mean(values).to_json("mean") if there else None
    spearman = rows[np.isfinite(rows[:, 1]), 1]
    found["histogram"] = {
        "edges": _CORRELATION_EDGES.tolist(),
        "counts": np.histogram(spearman.clip(-1, 1), _CORRELATION_EDGES)[0].tolist(),
    }
    return found


def rank_within_prompts(scores: Floats, rewards: Floats, groups: Ints) -> Floats:
    """Return how often the better of two samples of a prompt scores higher, ties half.

    Args:
        scores: Shape (samples,), finite.
        rewards: Shape (samples,), finite.
        groups: Shape (samples,): the prompt of each, 0, 1, 2, ... without a gap.

    Returns:
        Shape (prompts,): the area under the ROC curve if rewards are 0 or 1; 0.5 is chance. NaN
        where all rewards of a prompt are equal.
    """
    pieces = [np.flatnonzero(groups == prompt) for prompt in range(int(groups[-1]) + 1)]
    return np.array([_correlate_prompt(scores[piece], rewards[piece])[2] for piece in pieces])


def _correlate_prompt(scores: Floats, rewards: Floats) -> tuple[float, float, float]:
    if np.ptp(rewards) == 0:
        return math.nan, math.nan, math.nan
    differences = np.subtract.outer(scores, scores)[np.greater.outer(rewards, rewards)]
    auc = float(((differences > 0) + 0.5 * (differences == 0)).mean())
    if np.ptp(scores) == 0:
        return math.nan, math.nan, auc
    pearson = np.corrcoef(scores, rewards)[0, 1]
    spearman = np.corrcoef(rankdata(scores), rankdata(rewards))[0, 1]
    return float(pearson), float(spearman), auc


def _calibrate(scores: Floats, rewards: Floats, groups: Ints, bootstrap: Bootstrap) -> list[Json]:
    """Return the mean reward above the prompt's own, in bins of the score above the prompt's own.

    Bins hold equal numbers of samples, save for ties.
    """
    centred, excess = _centre(scores, groups), _centre(rewards, groups)
    edges = np.unique(np.quantile(centred, np.linspace(0, 1, _NUM_BINS + 1)))
    places = np.searchsorted(edges[1:-1], centred, side="right")  # (samples,)
    num_prompts, rows = int(groups[-1]) + 1, []
    for place in np.unique(places):
        inside = groups[places == place]
        sums = np.bincount(inside, excess[places == place], num_prompts).astype(float)
        counts = np.bincount(inside, minlength=num_prompts).astype(float)
        rows.append(
            {
                "score": float(centred[places == place].mean()),
                **bootstrap.ratio(sums, counts).to_json("reward"),
                "num_samples": len(inside),
            }
        )
    return rows


def _centre(values: Floats, groups: Ints) -> Floats:
    means = np.bincount(groups, values) / np.bincount(groups)
    return np.asarray(values - means[groups])
