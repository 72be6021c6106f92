"""Which weight decay earns most on prompts that a fit has not seen, or is best there otherwise.

Knows nothing of raw features, datasets or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.errors import TrainingError
from qprobe.evaluation.bootstrap import find_error
from qprobe.training.folds import make_folds
from qprobe.training.inputs import Inputs, use_threads
from qprobe.training.objectives import make_loss
from qprobe.training.optimiser import Loss
from qprobe.training.pooled import Part, solve
from qprobe.training.segments import segment_mean, segment_softmax, segment_spread
from qprobe.training.settings import TrainingSettings

__all__ = ["Criterion", "CrossValidation", "Problem", "cross_validate"]

Floats = NDArray[np.float64]
# What held-out scores, (samples,), are worth, by prompt: (prompts,). The more, the better.
Criterion = Callable[[Floats], Floats]
Preconditioner = Callable[[Tensor], Tensor]
# The share of the loss's decrease that a fit may leave: enough to rank decays by.
_TOLERANCE = 1e-3
# Weaker decays are not tried once so many in a row are behind the best: by so many standard errors,
# and by such a share of the rewards' spread, as equal fits differ by little, but surely.
_NUM_BEHIND, _BEHIND_ERRORS, _BEHIND_SHARE = 3, 2.0, 0.03
# Scores that vary within prompts by less than this share of the weights' norm are rounding.
_MIN_SPREAD = 1e-6
# Keeps steps finite at decay 0; a share of the variance of a standardised feature.
_MIN_CURVATURE = 1e-6


class Problem:
    """Samples with their rewards, a part for each fold.

    Args:
        rewards: Shape (samples,), finite.
        groups: Shape (samples,): the prompt of each, never decreasing.
        settings: Objective, folds and seed count.
        questions: Shape (samples,) or None, as in ``fit_probe``.

    Attributes:
        rewards, groups: As tensors on CPU; groups without gaps from 0 up.
        questions: Shape (prompts,): what each asks.
        places: The samples of each fold, ascending.
        order: Shape (samples,): those of the first fold, then of the next and so on. Inputs must
            have it, so that what is of a fold need not be copied.

    Raises:
        TrainingError: As ``fit_probe``.
    """

    def __init__(
        self,
        rewards: Floats,
        groups: NDArray[np.int64],
        settings: TrainingSettings,
        questions: NDArray[np.int64] | None = None,
    ) -> None:
        _check_targets(rewards, groups)
        self.settings = settings
        self.rewards = torch.as_tensor(rewards, dtype=torch.float64)
        self.groups = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
        questions = groups if questions is None else questions
        self.questions = questions[np.unique(groups, return_index=True)[1]]
        folds = make_folds(
            rewards,
            groups,
            questions,
            num_folds=settings.num_folds,
            seed=settings.seed,
        )[self.groups]
        self.places = [(folds == fold).nonzero()[:, 0] for fold in range(settings.num_folds)]
        self.order = torch.cat(self.places)

    def split(self, every: Part) -> list[Part]:
        """Return the part of each fold of all samples in its order: no copies."""
        return every.split([len(places) for places in self.places])

    def make_loss(self, fold: int | None) -> Loss:
        """Return the loss of scores of all folds' samples but one's, in order of the folds."""
        places = torch.cat([each for at, each in enumerate(self.places) if at != fold])
        rewards, groups = self.rewards[places], self.groups[places]
        objective = self.settings.objective
        if objective != "ce":
            rewards = rewards / segment_spread(rewards, groups)
        return make_loss(objective, rewards, groups, per_prompt=self.settings.per_prompt)

    def score_held_out(
        self, every: Part, found: Sequence[Tensor], level: Tensor | None = None
    ) -> Tensor:
        """Return the scores of all samples, each by the fit without its fold: (samples,).

        At one level: those of the folds differ, by much beside weights of a strong decay, and each
        by what was held out.

        Args:
            every: All samples, in its order.
            found: Of each fold the parameters of the fit without it.
            level: Of all samples by one fit; None takes the mean of theirs.
        """
        levels = torch.stack([every.find_level(each) for each in found])
        level = levels.mean() if level is None else level
        scores = torch.empty_like(self.rewards)
        each_fold = zip(self.places, self.split(every), found, levels, strict=True)
        for places, part, parameters, own in each_fold:
            scores[places] = part.score(parameters) - own + level
        return scores

    def earn(self, scores: Tensor, parameters: list[Tensor]) -> Floats:
        """Return each prompt's expected reward by raw held-out scores of these fits: (prompts,)."""
        scale = self.find_scale(scores, parameters)
        # A probe that learnt nothing chooses evenly.
        return self.expect(scores * 0 if scale is None else scores / scale)

    def expect(self, scores: Tensor) -> Floats:
        """Return each prompt's expected reward: (samples,) scores to (prompts,)."""
        # A tiny beta is the limit beta = 0.
        weights = segment_softmax(scores / max(self.settings.beta, 1e-12), self.groups)
        sizes = torch.bincount(self.groups)
        return (segment_mean(weights * self.rewards, self.groups) * sizes).numpy()

    def find_scale(
        self, scores: Tensor, parameters: list[Tensor], *, within: bool = True
    ) -> float | None:
        """Return the standard deviation of scores, within prompts or of all.

        None if it is only rounding.
        """
        size = max(float(each[:-1].norm()) for each in parameters)
        scale = segment_spread(scores, self.groups) if within else float(scores.std())
        return scale if scale > _MIN_SPREAD * size else None

    def precondition(self, inputs: Inputs) -> Callable[[float], Preconditioner]:
        """Return, by decay, about the inverse of the second derivative by the parameters.

        It takes gradients by the axes' weights or by all features', whichever it is called with.
        """
        objective = self.settings.objective
        # The second derivative of a square, or the most that a logistic loss has; the others come
        # close enough.
        curvature = 2.0 if objective == "mse" else 0.25
        variances = inputs.variances
        if self.settings.per_prompt or objective not in ("ce", "mse"):
            # Only differences within prompts count.
            variances = variances - _variances_between(inputs.reduced, self.groups[inputs.order])
        variances = variances.clamp_min(0)

        def at(decay: float) -> Preconditioner:
            floor = _MIN_CURVATURE * curvature
            along = 1 / (curvature * variances + decay + floor)
            beside = 1 / (curvature * inputs.left_out + decay + floor)

            def apply(gradient: Tensor) -> Tensor:
                weights, bias = gradient[:-1], gradient[-1:] / curvature
                if len(weights) == len(along):
                    return torch.cat([along * weights, bias])
                turned = inputs.project(weights)
                return torch.cat(
                    [beside * weights + inputs.expand((along - beside) * turned), bias]
                )

            return apply

        return at


@dataclass(frozen=True)
class CrossValidation:
    """What each weight decay that was tried earns on prompts held out.

    Attributes:
        weight_decays: Strongest first.
        rewards: Shape (decays, prompts): the expected reward of each prompt by the fit without it;
            or, with a criterion, what that says.
        parameters: Of each decay and fold, by the axes, as ``Part`` takes them.
    """

    weight_decays: tuple[float, ...]
    rewards: Floats
    parameters: list[list[Tensor]]

    @property
    def best(self) -> int:
        """The place of the decay that earns most, the strongest of equals."""
        return int(self.rewards.mean(1).argmax())


def cross_validate(
    problem: Problem,
    inputs: Inputs,
    *,
    criterion: Criterion | None = None,
    progress: Callable[[], object] = lambda: None,
) -> CrossValidation:
    """Try the weight decays, strongest first, each fit beginning where the one before ended.

    Where ``inputs`` has axes that leave something out, it is done along these: what they leave out
    varies least, so that a decay holds it down most.

    Args:
        problem: What to fit.
        inputs: To what; in the problem's order.
        criterion: What is best. None takes the expected reward, and tries no more decays once three
            in a row are clearly behind.
        progress: Called after each decay, and for those that are not tried.
    """
    assert torch.equal(inputs.order, problem.order)
    decays, folds = problem.settings.decays, range(problem.settings.num_folds)
    every = Part(inputs.reduced, inputs.pooled)
    with use_threads(*every.tensors):
        parts = problem.split(every)
        losses = [problem.make_loss(fold) for fold in folds]
        preconditioner = problem.precondition(inputs)
        found = [torch.zeros_like(every.decayed) for _ in folds]
        spread = segment_spread(problem.rewards, problem.groups)
        tried, earned = [], []
        for decay in decays:
            found = [
                solve(
                    parts[:fold] + parts[fold + 1 :],
                    losses[fold],
                    found[fold],
                    decay=decay,
                    precondition=preconditioner(decay),
                    tolerance=_TOLERANCE,
                )
                for fold in folds
            ]
            tried.append(found)
            scores = problem.score_held_out(every, found)
            if criterion is None:
                earned.append(problem.earn(scores, found))
            else:
                earned.append(criterion(scores.numpy()))
            progress()
            if criterion is None and _have_fallen_behind(earned, problem.questions, spread):
                break
    for _ in decays[len(tried) :]:
        progress()
    return CrossValidation(decays[: len(tried)], np.stack(earned), tried)


def _have_fallen_behind(
    earned: Sequence[Floats], questions: NDArray[np.int64], spread: float
) -> bool:
    best = max(earned, key=lambda each: each.mean())
    last = earned[-_NUM_BEHIND:]
    return len(last) == _NUM_BEHIND and all(
        (best - each).mean()
        > max(_BEHIND_ERRORS * find_error(questions, best - each), _BEHIND_SHARE * spread)
        for each in last
    )


def _variances_between(features: Tensor, groups: Tensor) -> Tensor:
    """Return the variances of prompts' means, samples counted: (samples, axes) to (axes,)."""
    places = groups.to(features.device)
    sizes = torch.bincount(groups).to(features)
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add(0, places, features)
    return (sums.square() / sizes[:, None]).sum(0).cpu().double() / len(features)


def _check_targets(rewards: Floats, groups: NDArray[np.int64]) -> None:
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise TrainingError(
            "rewards", f"must be (samples,) as groups {groups.shape!r}, got {rewards.shape!r}"
        )
    if not np.isfinite(rewards).all():
        raise TrainingError("rewards", f"must be finite, got {rewards[~np.isfinite(rewards)][0]!r}")
    if (np.diff(groups) < 0).any():
        place = int((np.diff(groups) < 0).argmax()) + 1
        raise TrainingError("groups", f"must not decrease, but does at sample {place!r}")
