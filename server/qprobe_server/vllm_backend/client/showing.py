"""The candidates of a prompt for a reply that shows them; long work, in turns with others."""

import asyncio
from collections.abc import Callable, Sequence

from qprobe_server.choice.candidates import Candidate
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.result import show_candidates
from qprobe_server.choice.schemas import CandidateReply
from qprobe_server.edge.turns import Turns

__all__ = ["show"]


async def show(
    request: RerankRequest,
    candidates: Sequence[Candidate],
    num_tokens: Sequence[int],
    token_scores: Sequence[Sequence[Sequence[float]]],
    decode: Callable[[Sequence[int]], str],
) -> list[CandidateReply] | None:
    """Return the candidates if the reply shows them.

    Args:
        request: What is asked.
        candidates: All of the prompt.
        num_tokens: Generated of each.
        token_scores: Of each, by probe those of its scored tokens, if they are asked for; what is
            beyond the request's probes is left out.
        decode: Token ids to text.
    """
    if not request.return_candidates:
        return None
    texts: dict[int, str] = {}
    turns = Turns()
    for each in candidates if request.return_token_scores else ():
        for token in each.token_ids:
            if token not in texts:  # of many candidates' tokens most are the same
                texts[token] = decode([token])
                await turns.give_way()
    weights = [weight for _, weight in request.probes]
    return await asyncio.to_thread(
        show_candidates,
        candidates,
        num_tokens=num_tokens,
        token_scores=[each[: len(weights)] for each in token_scores]
        if request.return_token_scores
        else None,
        weights=weights,
        texts=texts,
    )
