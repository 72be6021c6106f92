"""What a dataset holds at a glance: what there is to gain, and whether anything can be learnt."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from qprobe.data.dataset import Dataset

__all__ = ["Summary", "summarise"]


@dataclass(frozen=True)
class Summary:
    """Figures of a dataset.

    Attributes:
        num_prompts: Those with a rewarded sample, of which all means are.
        num_samples: With a reward, the greedy answers left out.
        num_unrewarded: Samples without.
        num_refused: Prompts without any sample, as an API or what reads refused them.
        base: Mean reward of one sample.
        greedy: Mean reward of the greedy answers; None without any.
        ceiling: Mean reward of the best sample of each prompt.
        spread: Standard deviation of the reward within a prompt: root of the mean variance.
        cut: Share of the samples that the limit of tokens has cut.
        num_differing: Prompts whose rewards differ; only these teach a choice.
        reasons: How many samples got each reason of the reward's, the most frequent first.
    """

    num_prompts: int
    num_samples: int
    num_unrewarded: int
    num_refused: int
    base: float
    greedy: float | None
    ceiling: float
    spread: float
    cut: float
    num_differing: int
    reasons: dict[str, int]


def summarise(dataset: Dataset) -> Summary | None:
    """Return the figures of a dataset, None if no sample has a reward."""
    if not dataset.samples:
        return None
    order = np.argsort(dataset.groups, kind="stable")
    starts = np.flatnonzero(np.diff(dataset.groups[order], prepend=-1))
    rewards = np.split(dataset.rewards[order], starts[1:])
    greedy = dataset.greedy_rewards[~np.isnan(dataset.greedy_rewards)]
    reasons = Counter(each.reason for each in dataset.samples if each.reason is not None)
    cut = sum(each.finish_reason == "length" for each in dataset.samples)
    return Summary(
        num_prompts=len(rewards),
        num_samples=len(dataset.samples),
        num_unrewarded=dataset.num_unrewarded,
        num_refused=dataset.num_refused,
        base=float(np.mean([each.mean() for each in rewards])),
        greedy=float(greedy.mean()) if len(greedy) else None,
        ceiling=float(np.mean([each.max() for each in rewards])),
        spread=float(np.sqrt(np.mean([each.var() for each in rewards]))),
        cut=cut / len(dataset.samples),
        num_differing=sum(bool(each.min() < each.max()) for each in rewards),
        reasons=dict(reasons.most_common()),
    )
