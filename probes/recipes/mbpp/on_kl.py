"""Tables of what a choice earns for its distance from the model, and of the optimum as k grows."""

import math
from pathlib import Path

import numpy as np
from figures import Line, draw_lines
from markdown import Table
from numpy.typing import NDArray
from scipy.special import logsumexp
from study import Judged, Study
from ways import BOTH

from qprobe.evaluation.expectation import expect, list_subsets

__all__ = ["find_objective", "tell_kl"]

Floats = NDArray[np.float64]
_BETAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_OBJECTIVE_BETAS = (0.5, 1.0, 2.0)


def tell_kl(study: Study, figures: Path) -> str | None:
    """All of MBPP in eight folds, by states and numbers.

    With k all of a problem's samples the choice is the optimum under the KL constraint of the
    distribution that these samples are: softmax(score / beta) of each.
    """
    if BOTH not in study.held_out:
        return None
    judged, scores = Judged(study.mbpp, study.k), study.held_out[BOTH]
    ks = [max(judged.k // 4, 1), max(judged.k // 2, 1), judged.k]
    curves = {k: _trace(judged, scores, k) for k in ks}
    table = Table("beta", *(name for k in ks for name in (f"k = {k}: KL, nats", "reward")))
    for place, beta in enumerate(_BETAS):
        points = [curves[k] for k in ks]
        cells = [f"{row[place]:.3f}" for kls, rewards in points for row in (kls, rewards)]
        table.add(f"{beta:g}", *cells)
    best = Table("best of k", "KL, nats: log k - (k - 1) / k", "reward")
    powers = [2**power for power in range(judged.k.bit_length()) if 2**power <= judged.k]
    bound = [math.log(k) - (k - 1) / k for k in powers]
    earned = [float(judged.choose(scores, beta=0, k=k).mean()) for k in powers]
    for k, kl, reward in zip(powers, bound, earned, strict=True):
        best.add(f"{k}", f"{kl:.3f}", f"{reward:.3f}")
    lines: dict[str, Line] = {f"k = {k}, by beta": curves[k] for k in ks}
    lines |= {"best of k, by k": (bound, earned)}
    title = "Reward by distance from the model"
    draw_lines(figures / "kl.png", title, "KL(policy || model), nats", lines, is_log=False)
    return "\n\n".join([str(table), str(best), _tell_objective(judged, scores, powers)])


def _trace(judged: Judged, scores: Floats, k: int) -> tuple[list[float], list[float]]:
    """Return the KL, log k - H(weights), and the reward by beta: means over problems."""
    rewards, groups = judged.dataset.rewards, judged.dataset.groups
    found = [expect(scores, rewards, groups, k=k, beta=beta) for beta in _BETAS]
    return [float(each.kl.mean()) for each in found], [float(each.rewards.mean()) for each in found]


def _tell_objective(judged: Judged, scores: Floats, ks: list[int]) -> str:
    table = Table("beta", *(f"k = {k}" for k in ks))
    for beta in _OBJECTIVE_BETAS:
        values = [find_objective(scores, judged.dataset.groups, k=k, beta=beta) for k in ks]
        table.add(f"{beta:g}", *(f"{(each - values[0]).mean():.3f}" for each in values))
    return (
        "What is optimised, mean score - beta KL, above one sample's; it cannot fall with k, and "
        f"its limit is the optimum's.\n\n{table}"
    )


def find_objective(scores: Floats, groups: NDArray[np.int64], *, k: int, beta: float) -> Floats:
    """Return each prompt's E[sum_i w_i score_i - beta (log k - H(w))] at w = softmax(score / beta).

    Which is E[beta log mean exp(score / beta)], over its subsets of k samples: (prompts,).

    Args:
        scores: Shape (samples,).
        groups: Shape (samples,): the prompt of each, from 0 without a gap.
        k: Size of a subset.
        beta: In units of score, > 0.
    """
    found = np.empty(int(groups[-1]) + 1)
    for prompts, picks, _ in list_subsets(groups, k):
        values = beta * (logsumexp(scores[picks] / beta, axis=-1) - math.log(k))
        found[prompts] = values.mean(axis=-1)  # (prompts, subsets) before
    return found
