"""A sampled completion as the choice sees it, and which of its tokens count. Knows no vLLM."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Candidate", "count_scored_tokens"]

_Decode = Callable[[Sequence[int]], str]

# Where the end of a text is looked for first: a stop string is seldom longer.
_FIRST_WINDOW = 32
# Characters before a stop string that tell its place from others.
_MIN_CONTEXT = 16
# What an unfinished UTF-8 sequence decodes to.
_UNFINISHED = "\ufffd"


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


def count_scored_tokens(candidate: Candidate, decode: _Decode) -> int:
    """Count the leading tokens of a candidate that make its embedding.

    The last token generated is never among them: it is a stop token, or it was cut off by the
    length limit before the model read it, so that it has no state. A candidate that a stop string
    ended keeps the tokens that its text needs; what follows was generated and dropped.

    Args:
        candidate: Finished.
        decode: Token ids to text, as the candidate's text was made. A text of many tokens is
            decoded from its end, as far as it takes to find where the stop string begins.
    """
    readable = max(len(candidate.token_ids) - 1, 0)
    if candidate.finish_reason != "stop" or not isinstance(candidate.stop_reason, str):
        return readable
    window = _FIRST_WINDOW
    while window < readable:
        start = readable - window
        needed = _find_end(candidate, candidate.stop_reason, decode(candidate.token_ids[start:]))
        if needed is not None:
            ids = candidate.token_ids[start:readable]
            return start + _count_needed(ids, needed, decode)
        window *= 2
    # Some tokenizers drop a leading space when there is no prompt before it.
    needed = len(candidate.text.lstrip(" "))
    return _count_needed(
        candidate.token_ids[:readable], needed, lambda ids: decode(ids).lstrip(" ")
    )


def _find_end(candidate: Candidate, stop: str, tail: str) -> int | None:
    """Return how many characters of the text's last part the candidate keeps.

    Args:
        candidate: Ended by a stop string.
        stop: That string.
        tail: What its last tokens decode to, with what was generated after the stop string.

    Returns:
        None if the place is not certain: there is none, or a second one, or too little before it.
    """
    if len(tail) < 2 * len(stop) + _MIN_CONTEXT:
        return None
    # The first token may continue a character that began before it.
    lead = len(tail) - len(tail.lstrip(_UNFINISHED))
    places = []
    at = tail.find(stop, lead)
    while at >= 0:
        for end in (at, at + len(stop)):  # vLLM leaves the stop string out, or keeps it if asked
            if end - lead >= _MIN_CONTEXT and candidate.text.endswith(tail[lead:end]):
                places.append(end)
        at = tail.find(stop, at + 1)
    return places[0] if len(places) == 1 else None


def _count_needed(token_ids: Sequence[int], needed: int, decode: _Decode) -> int:
    """Return how many leading tokens hold so many characters; all if even these do not."""
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        # An unfinished UTF-8 sequence does not hold its character yet.
        if len(decode(token_ids[:middle]).rstrip(_UNFINISHED)) >= needed:
            high = middle
        else:
            low = middle + 1
    return low
