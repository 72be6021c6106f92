"""From scores to the candidates that are the answers."""

import math
from collections.abc import Sequence

import numpy as np

from qprobe import Draw, beta_for_kl, softmax_resample
from qprobe.probe.voting import VoteDraw, draw_vote
from qprobe_server.choice.request import RerankRequest
from qprobe_server.errors import ScoringError

__all__ = ["check_finite", "choose", "combine", "settle_beta"]


def combine(scores: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the weighted sums of several probes' scores.

    Args:
        scores: Of each thing scored, one by each probe.
        weights: Of the probes.
    """
    return [
        math.fsum(weight * score for weight, score in zip(weights, each, strict=True))
        for each in scores
    ]


def choose(
    scores: Sequence[float],
    classes: Sequence[int] | None = None,
    *,
    beta: float,
    n: int,
    seed: int | None,
    prompt_index: int,
) -> Draw | VoteDraw:
    """Draw n of the candidates; the same seed and prompt index draw the same way.

    Args:
        scores: One per candidate, finite.
        classes: If they vote, the class of each, as ``draw_vote`` has it.
        beta: Temperature, in units of score, >= 0; infinity draws as the base model does.
        n: How many, from 1 to the number of candidates.
        seed: The request's; None draws afresh.
        prompt_index: Index of the prompt in its request, so that prompts draw independently.
    """
    entropy = None if seed is None else [seed % 2**64, prompt_index]
    rng = np.random.default_rng(entropy)
    if classes is None:
        return softmax_resample(scores, beta, n, rng)
    return draw_vote(scores, classes, beta, n, rng)


def settle_beta(request: RerankRequest, scores: Sequence[float]) -> float:
    """Return the temperature of the choice: what is asked, or what spends the KL that is asked."""
    if request.beta is not None:
        return request.beta
    assert request.target_kl is not None
    return beta_for_kl(scores, request.target_kl)


def check_finite(scores: Sequence[float]) -> None:
    """Check that a choice can be made from scores.

    Raises:
        ScoringError: A score is not finite.
    """
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ScoringError(f"the score of candidate {index} of {len(scores)} is {score!r}")
