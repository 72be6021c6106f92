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
from qprobe.training.segments import (
    number_segments,
    segment_mean,
    segment_softmax,
    segment_sum,
)

__all__ = [
    "Loss",
    "bt",
    "ce",
    "dpo",
    "make_loss",
    "mse",
    "pg",
    "ppo",
]

Loss = Callable[[Tensor], Tensor]
# The range in which PPO's ratio counts (Schulman et al. 2017, table 3).
_CLIP = 0.2
# Up to 33 samples a prompt, all pairs count.
_MAX_BEATEN = 32
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
    return -segment_sum(weights * _advantages(scores, rewards, groups), groups).mean()


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
    where the probe is judged. With one pair a prompt this is the usual loss. For the same reason a
    sample that beats more than 32 meets 32 of them only, evenly spread, which stand for all.

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
    """``ce`` of score + intercept, at the intercepts of prompts that make it least.

    Where all rewards of a prompt are 0, or all 1, that is 0 whatever the scores. The gradient by
    the scores is that at fixed intercepts, as the loss is flat in these.
    """
    ce(rewards, rewards, groups)  # refuses what it must
    mean = segment_mean(rewards, groups)
    kept = ((mean > 0) & (mean < 1))[number_segments(groups)[0]].nonzero()[:, 0]
    told, groups = rewards[kept], groups[kept]

    def loss(scores: Tensor) -> Tensor:
        logits = scores.index_select(0, kept)
        logits = logits + _find_intercepts(logits.detach(), told, groups)
        losses = binary_cross_entropy_with_logits(logits, told, reduction="sum")
        return losses / len(rewards)

    return loss


def _find_intercepts(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Return each sample's intercept, with which its prompt's chances add up to its rewards.

    By Newton's method, between bounds: were all of a prompt's scores its highest one, or its
    lowest, the intercept would be known.
    """
    if not len(scores):
        return scores
    segments, num = number_segments(groups)
    mean = segment_mean(rewards, groups)
    odds = (mean / (1 - mean)).log()
    start = scores.new_empty(num)
    low = odds - start.scatter_reduce(0, segments, scores, "amax", include_self=False)
    high = odds - start.scatter_reduce(0, segments, scores, "amin", include_self=False)
    intercepts = (low + high) / 2
    for _ in range(_NEWTON_STEPS):
        chances = torch.sigmoid(scores + intercepts[segments])
        excess = segment_mean(chances, groups) - mean
        low = torch.where(excess < 0, intercepts, low)
        high = torch.where(excess > 0, intercepts, high)
        moved = intercepts - excess / segment_mean(chances * (1 - chances), groups)
        moved = torch.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        shift, intercepts = (moved - intercepts).abs().max(), moved
        if shift < _NEWTON_TOLERANCE:
            break
    return intercepts[segments]


def _advantages(scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    segments, _ = number_segments(groups)
    rewards = rewards.to(scores.dtype)
    return rewards - segment_mean(rewards, groups).index_select(0, segments)


@dataclass(frozen=True)
class _Pairs:
    """Pairs with r_winner > r_loser; shapes (pairs,). The weights sum to 1."""

    winners: Tensor
    losers: Tensor
    weights: Tensor


def _find_pairs(scores: Tensor, rewards: Tensor, groups: Tensor) -> _Pairs:
    _check_shapes(scores, rewards, groups)
    segments, num = number_segments(groups)
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
    num_met = num_beaten.clamp_max(_MAX_BEATEN)
    firsts = num_met.cumsum(0) - num_met
    numbers = torch.arange(int(num_met.sum())) - firsts.repeat_interleave(num_met)  # 0, 1, ...
    # One pair stands for as many as there are between it and the next.
    shares = (num_beaten / num_met).repeat_interleave(num_met).double()
    # Each winner begins elsewhere, so that all losers are met.
    turns = (places * 7).repeat_interleave(num_met) % num_beaten.repeat_interleave(num_met)
    offsets = ((numbers * shares).long() + turns) % num_beaten.repeat_interleave(num_met)
    winners = order[places.repeat_interleave(num_met)]
    losers = order[starts.repeat_interleave(num_met) + offsets]
    prompts = segments[winners]
    counts = shares.new_zeros(num).index_add(0, prompts, shares)
    return _Pairs(winners, losers, shares / counts[prompts] / int((counts > 0).sum()))


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
