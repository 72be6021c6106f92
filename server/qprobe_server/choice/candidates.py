"""Sampled completions as the choice sees them, and the choice. Knows no vLLM."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qprobe import Draw, softmax_resample
from qprobe_server.choice.schemas import CandidateReply, ResultReply
from qprobe_server.errors import ScoringError

__all__ = [
    "Candidate",
    "check_finite",
    "choose",
    "combine",
    "count_scored_tokens",
    "make_result",
    "show_candidates",
]


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
    scores: Sequence[float], *, beta: float, n: int, seed: int | None, prompt_index: int
) -> Draw:
    """Draw n of the candidates; the same seed and prompt index draw the same way.

    Args:
        scores: One per candidate, finite.
        beta: Temperature, in units of score, >= 0; infinity draws as the base model does.
        n: How many, from 1 to the number of candidates.
        seed: The request's; None draws afresh.
        prompt_index: Index of the prompt in its request, so that prompts draw independently.
    """
    entropy = None if seed is None else [seed % 2**64, prompt_index]
    return softmax_resample(scores, beta, n, np.random.default_rng(entropy))


def check_finite(scores: Sequence[float]) -> None:
    """Check that a choice can be made from scores.

    Raises:
        ScoringError: A score is not finite.
    """
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ScoringError(f"the score of candidate {index} of {len(scores)} is {score!r}")


def make_result(
    *,
    num_tokens: Sequence[int],
    scores: Sequence[float],
    places: Sequence[int],
    draw: Draw,
    beta: float,
    shown: list[CandidateReply] | None,
    rejected_at: Sequence[int | None],
    checkpoint_scores: Sequence[dict[int, float]] | None,
) -> ResultReply:
    """Return the reply object of one prompt.

    Args:
        num_tokens: Generated of each candidate.
        scores: Of those that were drawn from.
        places: Which these are.
        draw: Made from these scores.
        beta: In units of score.
        shown: All candidates if they are wanted.
        rejected_at: Of each candidate, the checkpoint at which it left.
        checkpoint_scores: Of each candidate, by checkpoint; None if the request had no schedule.
    """
    given: dict[str, Any] = {} if shown is None else {"candidates": shown}
    if checkpoint_scores is not None:
        given |= {
            "num_tokens": list(num_tokens),
            "rejected_at": list(rejected_at),
            "checkpoint_scores": list(checkpoint_scores),
        }
    all_scores: list[float | None] = [None] * len(num_tokens)
    weights = [0.0] * len(num_tokens)
    for place, score, weight in zip(places, scores, draw.weights.tolist(), strict=True):
        all_scores[place], weights[place] = score, weight
    return ResultReply(
        selected=[places[index] for index in draw.selected],
        scores=all_scores,
        weights=weights,
        # The estimate is of a draw from samples of the base model, which survivors are not.
        kl=draw.kl if len(places) == len(num_tokens) else None,
        beta=None if math.isinf(beta) else beta,
        sampled_tokens=sum(num_tokens),
        **given,
    )


def show_candidates(
    candidates: Sequence[Candidate],
    *,
    num_tokens: Sequence[int],
    token_scores: Sequence[Sequence[float]] | None,
    decode: Callable[[Sequence[int]], str],
) -> list[CandidateReply]:
    """Return candidates for the reply.

    Args:
        candidates: All of them.
        num_tokens: Generated of each.
        token_scores: Of each candidate, one score for each of its scored tokens; None shows none.
        decode: Token ids to text. Tokens are decoded one by one: a character that takes several
            shows as U+FFFD in each.
    """
    shown = []
    # Of many candidates' tokens most are the same, and the event loop waits for this.
    decode_token = functools.cache(lambda token: decode([token]))
    for index, each in enumerate(candidates):
        given: dict[str, Any] = {}
        if token_scores is not None:
            scores = token_scores[index]
            tokens = [decode_token(token) for token in each.token_ids[: len(scores)]]
            given = {"tokens": tokens, "token_scores": list(scores)}
        shown.append(
            CandidateReply(
                text=each.text,
                num_tokens=num_tokens[index],
                finish_reason=each.finish_reason,
                stop_reason=each.stop_reason,
                **given,
            )
        )
    return shown
