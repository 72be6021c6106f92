"""One completion of a prompt, as a dataset stores it. Needs no torch: command lines know it too."""

import math
from dataclasses import dataclass

__all__ = ["FORMAT_VERSION", "GREEDY", "Sample"]

# Of the folder; ``qprobe.data.folder`` says what it holds.
FORMAT_VERSION = 2

# Index of the greedy answer among a prompt's samples; it is a baseline and has no embedding.
GREEDY = -1


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt.

    Attributes:
        prompt: Index of its prompt.
        index: Of the sample among the prompt's; GREEDY for the greedy answer.
        text: What a client would get of it.
        token_ids: Everything generated, the stop token included.
        num_scored: How many leading tokens make its embedding.
        logprob: Sum over the generated tokens, in nats, under the sampling distribution's model
            (temperature 1). None where an API does not tell it.
        finish_reason: ``stop`` or ``length``; ``given`` if it was not sampled.
        seed: The one that it was sampled with; None if it was not sampled, or with none.
        reward: Finite; None if the reward failed. ``Dataset.load`` leaves such samples out.
        reason: Of the reward, in a word or two, or None.
        logprobs: What ``logprob`` is the sum of, rounded; None if it was not kept.
    """

    prompt: int
    index: int
    text: str
    token_ids: list[int]
    num_scored: int
    logprob: float | None
    finish_reason: str
    seed: int | None
    reward: float | None
    reason: str | None = None
    logprobs: list[float] | None = None

    @property
    def num_states(self) -> int:
        """How many tokens' states make its embedding: of an empty one the prompt's last token."""
        return max(self.num_scored, 1)

    def sum_logprobs(self, tokens: int | None = None) -> float | None:
        """Return the sum over the first so many tokens, None: all; None if it is not known."""
        if tokens is None or tokens >= len(self.token_ids):
            return self.logprob
        return None if self.logprobs is None else math.fsum(self.logprobs[:tokens])
