"""What a reply tells of a prompt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qprobe import Draw
from qprobe.probe.voting import NO_CLASS, VoteDraw
from qprobe.rewards.equal import Classes
from qprobe_server.choice.candidates import Candidate
from qprobe_server.choice.draw import combine
from qprobe_server.choice.schemas import CandidateReply, ResultReply
from qprobe_server.choice.vote_schemas import VoteReply

__all__ = ["dump_result", "make_result", "show_candidates"]


def make_result(
    *,
    num_tokens: Sequence[int],
    scores: Sequence[float],
    places: Sequence[int],
    draw: Draw | VoteDraw,
    classes: Classes | None = None,
    confidence: Sequence[float] | None = None,
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
        classes: Of these candidates, if they voted.
        confidence: Of these candidates, if their probe tells it.
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
    if isinstance(draw, VoteDraw) and classes is not None:
        given["vote"] = _show_vote(
            draw, classes, places, len(num_tokens), is_told=shown is not None
        )
    if confidence is not None:
        expected: list[float | None] = [None] * len(num_tokens)
        for place, each in zip(places, confidence, strict=True):
            expected[place] = each
        given["confidence"] = expected
    all_scores: list[float | None] = [None] * len(num_tokens)
    weights = [0.0] * len(num_tokens)
    for place, score, weight in zip(places, scores, draw.weights.tolist(), strict=True):
        all_scores[place], weights[place] = score, weight
    return ResultReply(
        selected=[places[index] for index in draw.selected],
        scores=all_scores,
        weights=weights,
        # The estimate is of a draw from samples of the base model, which survivors are not.
        kl=draw.kl if isinstance(draw, Draw) and len(places) == len(num_tokens) else None,
        beta=None if math.isinf(beta) else beta,
        sampled_tokens=sum(num_tokens),
        **given,
    )


def _show_vote(
    draw: VoteDraw, classes: Classes, places: Sequence[int], k: int, *, is_told: bool
) -> VoteReply:
    of: list[int | None] = [None] * k
    for place, each in zip(places, classes.of, strict=True):
        of[place] = None if each == NO_CLASS else each
    given: dict[str, Any] = {"answers": classes.answers} if is_told else {}
    return VoteReply(classes=of, weights=draw.class_weights.tolist(), **given)


def show_candidates(
    candidates: Sequence[Candidate],
    *,
    num_tokens: Sequence[int],
    token_scores: Sequence[Sequence[Sequence[float]]] | None,
    weights: Sequence[float],
    texts: Mapping[int, str],
) -> list[CandidateReply]:
    """Return candidates for the reply.

    Args:
        candidates: All of them.
        num_tokens: Generated of each.
        token_scores: Of each candidate, by probe the scores of its scored tokens; None shows none.
        weights: Of the probes.
        texts: Of each scored token, decoded alone: a character that takes several tokens shows as
            U+FFFD in each.
    """
    shown = []
    for index, each in enumerate(candidates):
        given: dict[str, Any] = {}
        if token_scores is not None:
            scores = combine([*zip(*token_scores[index], strict=True)], weights)
            tokens = [texts[token] for token in each.token_ids[: len(scores)]]
            given = {"tokens": tokens, "token_scores": scores}
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


def dump_result(result: ResultReply) -> bytes:
    """Return a result as JSON.

    Candidate by candidate, since nothing else runs in this process while one is made into JSON.
    """
    dumped = result.model_dump_json(exclude_unset=True, exclude={"candidates"}).encode()
    if result.candidates is None:
        return dumped
    shown = b",".join(
        each.model_dump_json(exclude_unset=True).encode() for each in result.candidates
    )
    return dumped.removesuffix(b"}") + b',"candidates":[' + shown + b"]}"
