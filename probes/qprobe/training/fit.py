"""Fitting a probe to rewarded samples: which weight decay, and the weights.

Knows nothing of datasets or files: it takes features, rewards and groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import find_error
from qprobe.training.cross_validation import Criterion, CrossValidation, Problem, cross_validate
from qprobe.training.inputs import Inputs, prepare, use_threads
from qprobe.training.pooled import Part, PooledWeights, solve
from qprobe.training.settings import TrainingSettings

__all__ = ["FittedProbe", "TrainingSettings", "describe_edge", "fit_inputs", "fit_probe"]

Json = dict[str, Any]
Floats = NDArray[np.float64]
# The share of the loss's decrease that the fits may leave whose weights or scores are kept.
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class FittedProbe:
    """A trained probe, and how it came about.

    Attributes:
        weights: Shape (width,) for each block, float32 on CPU: for raw features, in units of the
            finished score, which has standard deviation 1 within prompts not trained on.
        number_weights: Shape (numbers,), likewise; of length 0 if there were none.
        bias: Added to every score.
        weight_decay: The one chosen.
        scale: That standard deviation before it was divided away. With ``pg`` and ``ppo``, trained
            as softmax(score), resampling at beta = 1 / scale is the policy that was trained.
        cross_validation: ``{"weight_decay", "reward"}`` for each tried, strongest first; the reward
            is the mean expected reward on held-out prompts.
        held_out_scores: Shape (samples,): each by the weights of a fit without its prompt, and this
            probe's bias, in the same unit.
        held_out_rewards: Shape (prompts,): the expected reward of each by the fit without it, at
            the weight decay chosen, and so a little too high.
        notes: What one must know to believe it, in words.
        pooled: The weights of the other terms that were fitted with these, if any.
    """

    weights: list[Tensor]
    number_weights: Tensor
    bias: float
    weight_decay: float
    scale: float
    cross_validation: list[Json]
    held_out_scores: Floats
    held_out_rewards: Floats
    notes: tuple[str, ...] = ()
    pooled: tuple[PooledWeights, ...] = ()

    def score(self, blocks: Sequence[Tensor], numbers: Tensor | None = None) -> Tensor:
        """Score raw features: (samples, width) each, any float dtype, to (samples,) float32.

        Not of a probe with other terms: ``qprobe.evaluation.scoring`` scores all.
        """
        assert not self.pooled
        parts = zip(blocks, self.weights, strict=True)
        terms = [block.to(torch.float32) @ weight for block, weight in parts]
        if numbers is not None:
            terms.append(numbers.to(torch.float32) @ self.number_weights)
        return torch.stack(terms).sum(0) + self.bias


def fit_probe(
    blocks: Sequence[Tensor],
    rewards: Floats,
    groups: NDArray[np.int64],
    settings: TrainingSettings,
    questions: NDArray[np.int64] | None = None,
    *,
    numbers: Tensor | None = None,
    progress: Callable[[], object] = lambda: None,
) -> FittedProbe:
    """Train a probe.

    Features are standardised by the training samples, and that is folded into the weights. The
    weight decay is the one with the highest expected reward of resampling on held-out prompts, all
    samples of a prompt being the candidates. Weaker decays are not tried once three in a row are
    clearly behind the best.

    Blocks are fitted together, as one block of all their features would be. A weight of a number
    is decayed by a hundredth of what a feature's is.

    Temperature: losses are taken at beta = 1. With any other the weights would only come out in
    another unit (and the decays mean something else), and units are divided away in the end. For
    the same reason ``dpo`` has the same optimum as ``bt``. Rewards count in units of their standard
    deviation within prompts, except for ``ce``, so that decays do not depend on the reward's unit.

    The unit of scores is their standard deviation within prompts that a fit has not seen, in
    cross-validation: on those that it was trained on scores vary more.

    Large features take all of torch's threads, and a GPU if torch has one; small ones one thread.
    The same arguments give the same bits on the same machine with as many threads.

    Args:
        blocks: Shape (samples, width) each, any float dtype, finite. None are needed if there are
            numbers.
        rewards: Shape (samples,), finite; from 0 to 1 for ``ce``.
        groups: Shape (samples,): the prompt of each, never decreasing.
        settings: How.
        questions: Shape (samples,): what the prompt of each asks. Prompts that ask the same, as
            pairs of preferences do, are held out together. None: each asks something else.
        numbers: Shape (samples, numbers), any float dtype, finite: what is known of a sample
            besides. None: nothing.
        progress: Called ``len(settings.decays) + 1`` times.

    Raises:
        TrainingError: Data are not as above, features do not vary, fewer than ``num_folds``
            questions have differing rewards, or nothing was learnt.
    """
    problem = Problem(rewards, groups, settings, questions)
    return fit_inputs(problem, prepare(blocks, numbers, order=problem.order), progress=progress)


def fit_inputs(
    problem: Problem,
    inputs: Inputs,
    *,
    criterion: Criterion | None = None,
    progress: Callable[[], object] = lambda: None,
) -> FittedProbe:
    """Train a probe on what is prepared in the problem's order; see ``fit_probe``.

    With a criterion for the weight decay nothing is chosen by the scores, which may differ between
    prompts only: their unit is the standard deviation of all then.
    """
    tried = cross_validate(problem, inputs, criterion=criterion, progress=progress)
    decay = tried.weight_decays[tried.best]
    features, starts = inputs.reduced, tried.parameters[tried.best]
    if inputs.whole is not None:
        features = inputs.whole
        starts = [torch.cat([inputs.expand(each[:-1]), each[-1:]]) for each in starts]
    every = Part(features, inputs.pooled)
    with use_threads(*every.tensors):
        scores, found = _refit(problem, inputs, every, starts, decay)
    scale = problem.find_scale(scores, starts, within=criterion is None)
    if scale is None:
        raise TrainingError(
            "features", "tell nothing of prompts held out: what was learnt scores them all the same"
        )
    weights, *others, bias = every.divide(found)
    weights = weights if inputs.whole is not None else inputs.expand(weights)
    pairs = zip(inputs.pooled, others, strict=True)
    pooled = [each.undo(parameters, scale) for each, parameters in pairs]
    raw = inputs.undo(weights / scale, float(bias) / scale)
    progress()
    return FittedProbe(
        weights=raw.blocks,
        number_weights=raw.numbers,
        bias=raw.bias + sum(offset for _, offset in pooled),
        weight_decay=decay,
        scale=scale,
        cross_validation=[
            {"weight_decay": each, "reward": float(reward)}
            for each, reward in zip(tried.weight_decays, tried.rewards.mean(1), strict=True)
        ],
        held_out_scores=(scores / scale).numpy(),
        held_out_rewards=tried.rewards[tried.best],
        notes=tuple(describe_edge(tried, problem)),
        pooled=tuple(each for each, _ in pooled),
    )


def describe_edge(tried: CrossValidation, problem: Problem) -> list[str]:
    """Return, in words, that the weight decay chosen is at an edge of those to choose from.

    At the strong end only if the next one is worse by more than a standard error: where it is as
    good, a stronger one would be too.
    """
    decay, decays = tried.weight_decays[tried.best], problem.settings.decays
    if len(decays) == 1 or decay not in (decays[0], decays[-1]):
        return []
    side, other = "weakest", "weaker"
    if decay == decays[0]:
        side, other = "strongest", "stronger"
        lost = tried.rewards[0] - tried.rewards[1]
        if lost.mean() <= find_error(problem.questions, lost):
            return []
    return [f"the weight decay chosen, {decay:g}, is the {side} tried: a {other} one may earn more"]


def _refit(
    problem: Problem,
    inputs: Inputs,
    every: Part,
    starts: Sequence[Tensor],
    decay: float,
) -> tuple[Tensor, Tensor]:
    """Return raw scores, each by a fit without its fold, and the parameters of the fit to all."""
    parts, precondition = problem.split(every), problem.precondition(inputs)(decay)

    def fit(fold: int | None, start: Tensor) -> Tensor:
        return solve(
            [part for at, part in enumerate(parts) if at != fold],
            problem.make_loss(fold),
            start,
            decay=decay,
            precondition=precondition,
            tolerance=_TOLERANCE,
        )

    found = [fit(fold, start) for fold, start in enumerate(starts)]
    whole = fit(None, torch.stack(found).mean(0))
    return problem.score_held_out(every, found, every.find_level(whole)), whole
