"""Sums, means and the like over the samples of each prompt.

Shapes are (samples,) unless said; ``groups`` is the prompt of each sample, equal ones together.
"""

import torch
from torch import Tensor

__all__ = [
    "number_segments",
    "segment_mean",
    "segment_softmax",
    "segment_spread",
    "segment_sum",
]


def segment_softmax(logits: Tensor, groups: Tensor) -> Tensor:
    """Softmax within each prompt: shape (samples,), sums to 1 over a prompt's samples.

    Beside that of ``resampling``, as losses are differentiated through it, and prompts may differ
    in their number of samples.
    """
    segments, num = number_segments(groups)
    highest = logits.new_empty(num).scatter_reduce(
        0, segments, logits.detach(), "amax", include_self=False
    )
    powers = (logits - highest.index_select(0, segments)).exp()
    return powers / segment_sum(powers, groups).index_select(0, segments)


def segment_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of each prompt's values: shape (prompts,), in order of the prompts that occur."""
    sums = segment_sum(values, groups)
    return sums / segment_sum(torch.ones_like(values), groups)


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


def number_segments(groups: Tensor) -> tuple[Tensor, int]:
    """Return the prompt of each sample, numbered without gaps, and the number of prompts."""
    _, segments = torch.unique_consecutive(groups, return_inverse=True)
    return segments, int(segments[-1]) + 1


def segment_sum(values: Tensor, groups: Tensor) -> Tensor:
    """Sum of each prompt's values: shape (prompts,), in order of the prompts that occur."""
    segments, num = number_segments(groups)
    return values.new_zeros(num).index_add(0, segments, values)  # (prompts,)
