"""Sampled completions as the choice sees them, and the choice. Knows no vLLM."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qprobe import Draw, softmax_resample
from qprobe_server.errors import ScoringError

__all__ = ["Candidate", "choose", "count_scored_tokens", "make_result"]


@dataclass(frozen=True)
class Candidate:
    """One sampled completion.

    Attributes:
        text: What the client would get of it.
        token_ids: Everything generated for it, the stop token included.
        finish_reason: As vLLM gives it: ``stop``, ``length``, ``abort`` ...
        stop_reason: The stop string or token id that ended it; None for EOS and other reasons.
    """

    text: str
    token_ids: Sequence[int]
    finish_reason: str | None
    stop_reason: int | str | None


def count_scored_tokens(candidate: Candidate, decode: Callable[[Sequence[int]], str]) -> int:
    """Count the leading tokens of a candidate that make its embedding.

    The last token generated is never among them: it is a stop token, or it was cut off by the
    length limit before the model read it, so that it has no state. A candidate that a stop string
    ended keeps the tokens that its text needs; what follows was generated and dropped.

    Args:
        candidate: Finished.
        decode: Token ids to text, as the candidate's text was made.
    """
    readable = max(len(candidate.token_ids) - 1, 0)
    # Some tokenizers drop a leading space when there is no prompt before it.
    needed = len(candidate.text.lstrip(" "))
    if candidate.finish_reason != "stop" or not isinstance(candidate.stop_reason, str):
        return readable
    low, high = 0, readable
    while low < high:
        middle = (low + high) // 2
        # An unfinished UTF-8 sequence decodes to U+FFFD and does not hold its character yet.
        if len(decode(candidate.token_ids[:middle]).rstrip("�").lstrip(" ")) >= needed:
            high = middle
        else:
            low = middle + 1
    return low


def choose(
    scores: Sequence[float], *, beta: float, n: int, seed: int | None, prompt_index: int
) -> Draw:
    """Draw n of the candidates; the same seed and prompt index draw the same way.

    Args:
        scores: One per candidate.
        beta: Temperature, in units of score, >= 0.
        n: How many, from 1 to the number of candidates.
        seed: The request's; None draws afresh.
        prompt_index: Index of the prompt in its request, so that prompts draw independently.

    Raises:
        ScoringError: A score is not finite.
    """
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ScoringError(f"the score of candidate {index} of {len(scores)} is {score!r}")
    entropy = None if seed is None else [seed % 2**64, prompt_index]
    return softmax_resample(scores, beta, n, np.random.default_rng(entropy))


def make_result(
    candidates: Sequence[Candidate],
    scores: Sequence[float],
    draw: Draw,
    *,
    return_candidates: bool,
) -> dict[str, Any]:
    """Return the reply object of one prompt."""
    result: dict[str, Any] = {
        "selected": draw.selected,
        "scores": list(scores),
        "weights": draw.weights.tolist(),
        "kl": draw.kl,
        "sampled_tokens": sum(len(each.token_ids) for each in candidates),
    }
    if return_candidates:
        result["candidates"] = [
            {
                "text": each.text,
                "num_tokens": len(each.token_ids),
                "finish_reason": each.finish_reason,
                "stop_reason": each.stop_reason,
            }
            for each in candidates
        ]
    return result
