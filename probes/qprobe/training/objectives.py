"""The losses that a probe can be trained with: pure functions of scores, rewards and groups.

Shapes are (samples,) throughout. ``groups`` holds the prompt of each sample, an integer that never
decreases; prompts may have any number of samples >= 1. Knows nothing of networks or optimisers.
The names are those of Li et al. 2024, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from qprobe.errors import TrainingError
from qprobe.probe.values import OBJECTIVES

__all__ = [
    "Loss",
    "bt",
    "ce",
    "dpo",
    "make_loss",
    "mse",
    "pg",
    "ppo",
    "segment_mean",
    "segment_softmax",
    "segment_spread",
]

Loss = Callable[[Tensor], Tensor]
# The range in which PPO's ratio counts (Schulman et al. 2017, table 3).
_CLIP = 0.2
# Of an intercept's search, and when it has moved little enough.
_NEWTON_STEPS, _NEWTON_TOLERANCE = 50, 1e-9


def mse(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean over samples of (score - reward)^2; L_Q of the paper.

    Args:
        scores: Shape (samples,), any float dtype; the loss has it too.
        rewards: Shape (samples,), finite.
        groups: Shape (samples,), the prompt of each; matters to the shape only.

    Raises:
        TrainingError: Shapes differ.
    """
    _check_shapes(scores, rewards, groups)
    return (scores - rewards.to(scores.dtype)).square().mean()


def ce(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean over samples of the cross entropy of sigmoid(score) against the reward; L_CE.

    Arguments are those of ``mse``, with rewards from 0 to 1.

    Raises:
        TrainingError: Shapes differ, or a reward is not from 0 to 1.
    """
    _check_shapes(scores, rewards, groups)
    outside = rewards[(rewards < 0) | (rewards > 1)]
    if outside.numel():
        raise TrainingError(
            "rewards", f"must be from 0 to 1 for the objective 'ce', got {outside[0].item()!r}"
        )
    return binary_cross_entropy_with_logits(scores, rewards.to(scores.dtype))


def pg(scores: Tensor, rewards: Tensor, groups: Tensor, *, beta: float = 1.0) -> Tensor:
    """Minus the reward of resampling, over the prompt's mean; L_PG, averaged over prompts.

    For one prompt: -sum_i softmax(scores / beta)_i (r_i - mean r). The prompt's samples estimate
    both the expectation and the normaliser of pi ~ p0 exp(Q / beta), so the gradient is that of
    -E_pi[r] with bias O(1 / samples). A prompt with equal rewards adds nothing.

    Args:
        scores: As for ``mse``.
        rewards: As for ``mse``.
        groups: Shape (samples,), the prompt of each.
        beta: In units of score, > 0.

    Raises:
        TrainingError: Shapes differ.
    """
    _check_shapes(scores, rewards, groups)
    weights = segment_softmax(scores / beta, groups)
    return -_sum_by_prompt(weights * _advantages(scores, rewards, groups), groups).mean()


def ppo(
    scores: Tensor, rewards: Tensor, groups: Tensor, *, beta: float = 1.0, clip: float = _CLIP
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7) of ``pg``, averaged over prompts.

    The ratio pi / p0 of a prompt's sample i is estimated by its k samples as k softmax(scores /
    beta)_i. The loss is -mean_i min(ratio A, clip(ratio) A), the advantage A being r_i - mean r.
    Without the clip it is ``pg``.

    Arguments and errors are those of ``pg``; the ratio counts within [1 - clip, 1 + clip].
    """
    _check_shapes(scores, rewards, groups)
    advantages = _advantages(scores, rewards, groups)
    _, segments, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    ratios = segment_softmax(scores / beta, groups) * sizes.index_select(0, segments)
    clipped = ratios.clamp(1 - clip, 1 + clip)
    gains = torch.minimum(ratios * advantages, clipped * advantages)
    return -segment_mean(gains, groups).mean()


def bt(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Bradley-Terry: -log sigmoid(Q_i - Q_j) over the pairs of a prompt with r_i > r_j.

    Each prompt that has a pair counts the same, whatever its number of pairs: that number grows as
    the square of the number of samples, and the information does not. It is also how prompts count
    where the probe is judged. With one pair a prompt this is the usual loss.

    Arguments are those of ``pg``.

    Raises:
        TrainingError: Shapes differ, or no prompt has a pair.
    """
    return _pair_loss(scores, _find_pairs(scores, rewards, groups), scale=1.0)


def dpo(
    scores: Tensor,
    rewards: Tensor,
    groups: Tensor,
    *,
    beta: float = 1.0,
    dpo_beta: float | None = None,
) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) with the policy that the probe implies.

    The loss of a pair is -log sigmoid(dpo_beta (l_i - l_j)), l = log pi / p0 = Q / beta - log Z.
    The normaliser Z is the prompt's, so it cancels, and the loss is exactly that of ``bt`` at
    scores times dpo_beta / beta. Unlike a language model's likelihoods, a probe's scores are not
    tied by normalisation, so DPO is here what its theory says: a reward model by another name.
    With one beta for both, the default, it is ``bt``; with two, an L2 penalty of c on its scores'
    weights is one of c (beta / dpo_beta)^2 on those of ``bt``, and nothing else differs.

    Arguments and errors are those of ``pg`` and ``bt``; dpo_beta > 0 is the loss's own.
    """
    scale = 1.0 if dpo_beta is None else dpo_beta / beta
    return _pair_loss(scores, _find_pairs(scores, rewards, groups), scale=scale)


def make_loss(objective: str, rewards: Tensor, groups: Tensor, *, per_prompt: bool = False) -> Loss:
    """Return the loss as a function of scores, at beta = 1; what costs time is done here once.

    Args:
        objective: ``mse``, ``ce``, ``pg``, ``ppo``, ``bt`` or ``dpo``.
        rewards: As for that objective.
        groups: As for that objective.
        per_prompt: Whether ``mse`` and ``ce`` are the least over an intercept for each prompt.

    Raises:
        TrainingError: Of that objective, here or at the first call; or the objective is unknown.
    """
    if objective not in OBJECTIVES:
        allowed = ", ".join(OBJECTIVES)
        raise TrainingError("objective", f"must be one of {allowed}, got {objective!r}")
    if objective in ("bt", "dpo"):
        pairs = _find_pairs(rewards, rewards, groups)
        return lambda scores: _pair_loss(scores, pairs, scale=1.0)
    if per_prompt and objective == "mse":
        advantages = _advantages(rewards, rewards, groups)
        return lambda scores: mse(_advantages(scores, scores, groups), advantages, groups)
    if per_prompt and objective == "ce":
        return _ce_with_intercepts(rewards, groups)
    function = {"mse": mse, "ce": ce, "pg": pg, "ppo": ppo}[objective]
    return lambda scores: function(scores, rewards, groups)


def _ce_with_intercepts(rewards: Tensor, groups: Tensor) -> Loss:
    """``ce`` of score + intercept, at the intercepts that make it least.

    Where all rewards of a prompt are 0, or all 1, that is 0 whatever the scores. The gradient by
    the scores is that at fixed intercepts, as the loss is flat in these.
    """
    ce(rewards, rewards, groups)  # refuses what it must
    segments, num = _segments(groups)
    totals = _sum_by_prompt(rewards, groups)  # (prompts,)
    sizes = _sum_by_prompt(torch.ones_like(rewards), groups)
    telling = (totals > 0) & (totals < sizes)
    kept = telling[segments]
    odds = (totals / (sizes - totals)).log()

    def loss(scores: Tensor) -> Tensor:
        # The intercept lies where all of a prompt's scores being the highest, or the lowest, would
        # put it; Newton's steps are kept between such bounds by bisection.
        fixed = scores.detach()
        highest = fixed.new_empty(num).scatter_reduce(
            0, segments, fixed, "amax", include_self=False
        )
        lowest = fixed.new_empty(num).scatter_reduce(0, segments, fixed, "amin", include_self=False)
        low, high = odds - highest, odds - lowest
        intercepts = odds - segment_mean(fixed, groups)
        for _ in range(_NEWTON_STEPS):
            chances = torch.sigmoid(fixed + intercepts[segments])
            excess = _sum_by_prompt(chances, groups) - totals
            slope = _sum_by_prompt(chances * (1 - chances), groups)
            low = torch.where(excess < 0, intercepts, low)
            high = torch.where(excess > 0, intercepts, high)
            moved = intercepts - excess / slope
            inside = (moved > low) & (moved < high)
            moved = torch.where(inside, moved, (low + high) / 2)
            if bool(((moved - intercepts).abs() < _NEWTON_TOLERANCE)[telling].all()):
                break
            intercepts = torch.where(telling, moved, intercepts)
        logits = (scores + intercepts[segments])[kept]
        losses = binary_cross_entropy_with_logits(logits, rewards[kept], reduction="sum")
        return losses / len(scores)

    return loss


def segment_softmax(logits: Tensor, groups: Tensor) -> Tensor:
    """Softmax within each prompt: shape (samples,), sums to 1 over a prompt's samples.

    Beside that of ``resampling``, as losses are differentiated through it, and prompts may differ
    in their number of samples.
    """
    segments, num = _segments(groups)
    highest = logits.new_empty(num).scatter_reduce(
        0, segments, logits.detach(), "amax", include_self=False
    )
    powers = (logits - highest.index_select(0, segments)).exp()
    return powers / _sum_by_prompt(powers, groups).index_select(0, segments)


def segment_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of each prompt's values: shape (prompts,), in order of the prompts that occur."""
    sums = _sum_by_prompt(values, groups)
    return sums / _sum_by_prompt(torch.ones_like(values), groups)


def segment_spread(values: Tensor, groups: Tensor) -> float:
    """Standard deviation within prompts: root of the mean over prompts of the unbiased variance.

    Prompts with one sample say nothing of it. Unbiased, so that it means the same for 2 samples a
    prompt as for 200.
    """
    _, segments, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    deviations = values - segment_mean(values, groups)[segments]
    variances = segment_mean(deviations.square(), groups)[sizes > 1]
    sizes = sizes[sizes > 1]
    return float((variances * sizes / (sizes - 1)).mean().sqrt())


def _segments(groups: Tensor) -> tuple[Tensor, int]:
    """Return the prompt of each sample, numbered without gaps, and the number of prompts."""
    _, segments = torch.unique_consecutive(groups, return_inverse=True)
    return segments, int(segments[-1]) + 1


def _sum_by_prompt(values: Tensor, groups: Tensor) -> Tensor:
    segments, num = _segments(groups)
    return values.new_zeros(num).index_add(0, segments, values)  # (prompts,)


def _advantages(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    segments, _ = _segments(groups)
    rewards = rewards.to(scores.dtype)
    return rewards - segment_mean(rewards, groups).index_select(0, segments)


@dataclass(frozen=True)
class _Pairs:
    """The pairs with r_winner > r_loser; shapes (pairs,). The weights sum to 1."""

    winners: Tensor
    losers: Tensor
    weights: Tensor


def _find_pairs(scores: Tensor, rewards: Tensor, groups: Tensor) -> _Pairs:
    _check_shapes(scores, rewards, groups)
    segments, num = _segments(groups)
    # Stable sorts by reward, then by prompt. A sample beats those of its prompt that come before
    # the first of its own reward.
    order = torch.argsort(rewards, stable=True)
    order = order[torch.argsort(segments[order], stable=True)]
    places = torch.arange(len(order))
    starts = torch.searchsorted(segments, segments[order])  # first place of the prompt
    runs = torch.zeros_like(places)
    runs[1:] = (segments[order].diff() != 0).logical_or(rewards[order].diff() != 0).cumsum(0)
    run_starts = torch.searchsorted(runs, runs)  # first place of the reward in the prompt
    num_beaten = run_starts - starts
    total = int(num_beaten.sum())
    if total == 0:
        raise TrainingError("rewards", "differ within no prompt, so there is no pair to learn from")
    firsts = num_beaten.cumsum(0) - num_beaten
    offsets = torch.arange(total) - firsts.repeat_interleave(num_beaten)
    winners = order[places.repeat_interleave(num_beaten)]
    losers = order[starts.repeat_interleave(num_beaten) + offsets]
    prompts = segments[winners]
    counts = torch.bincount(prompts, minlength=num)
    return _Pairs(winners, losers, 1 / counts[prompts].double() / int((counts > 0).sum()))


def _pair_loss(scores: Tensor, pairs: _Pairs, *, scale: float) -> Tensor:
    # index_select, since the backward of scores[...] adds in no fixed order on several threads.
    margins = scores.index_select(0, pairs.winners) - scores.index_select(0, pairs.losers)
    return (pairs.weights.to(scores.dtype) * softplus(-scale * margins)).sum()


def _check_shapes(scores: Tensor, rewards: Tensor, groups: Tensor) -> None:
    if scores.ndim != 1 or not len(scores):
        raise TrainingError("scores", f"must have shape (samples,), got {tuple(scores.shape)!r}")
    for name, tensor in (("rewards", rewards), ("groups", groups)):
        if tensor.shape != scores.shape:
            raise TrainingError(
                name, f"must have shape {tuple(scores.shape)!r}, got {tuple(tensor.shape)!r}"
            )
