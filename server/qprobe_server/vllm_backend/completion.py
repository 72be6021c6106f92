"""A completion of a dataset, as the engine gives it.

Relies on vLLM 0.32.0: log-probabilities are a mapping of tokens to ``Logprob`` (logprobs.py) a
position.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Completion", "list_logprobs"]


@dataclass(frozen=True)
class Completion:
    """A completion as the engine gives it; ``request`` is the index of what was asked.

    Attributes:
        logprobs: Of each of ``token_ids``, in nats, under the model itself.
        embeddings: Shape (layers, 2 + windows, hidden), float16: for each layer the last token's
            state, the mean, and the means of the windows. None if it was not asked for.
        tokens: Shape (token layers, tokens, hidden), float16: the states of the tokens that make
            the embeddings. Likewise None.
    """

    request: int
    text: str
    token_ids: list[int]
    num_scored: int
    logprobs: list[float]
    finish_reason: str
    embeddings: Tensor | None
    tokens: Tensor | None


def list_logprobs(token_ids: Sequence[int], found: Iterable[Any]) -> list[float]:
    """Return the log-probability of each token, from vLLM's of several a position.

    The first token of all, where there is no prompt, has none: it counts as sure.
    """
    return [
        0.0 if each is None else float(each[token].logprob)
        for each, token in zip(found, token_ids, strict=True)
    ]
