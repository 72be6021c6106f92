"""The answers that a dataset is to have, whoever writes and reads them, and their rewards."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from qprobe.data.prompts import PromptRow
from qprobe.data.sample import GREEDY
from qprobe.rewards.rating import Rated
from qprobe_server.commands.manifest import SEED_STRIDE
from qprobe_server.commands.rewarding import Rewarding, already_rated

__all__ = ["Wanted", "begin_reward", "list_given", "list_samples"]


@dataclass(frozen=True)
class Wanted:
    """An answer to a prompt.

    Attributes:
        prompt: Index of the prompt.
        index: Of the answer among the prompt's; GREEDY for the greedy one.
        seed: That it is drawn with, or None.
        reward: Where it is known beforehand.
    """

    prompt: int
    index: int
    seed: int | None = None
    reward: float | None = None


def list_samples(prompts: Iterable[int], *, n: int, seed: int, greedy: bool) -> list[Wanted]:
    """Return what is to be sampled, prompt by prompt.

    Args:
        prompts: Their indices.
        n: Samples per prompt, 1 to SEED_STRIDE.
        seed: Of the whole collection.
        greedy: Whether every prompt also gets a greedy answer, which comes first.
    """
    wanted = []
    for prompt in prompts:
        if greedy:
            wanted.append(Wanted(prompt, GREEDY))
        first = seed + prompt * SEED_STRIDE
        wanted += [Wanted(prompt, index, first + index) for index in range(n)]
    return wanted


def list_given(prompts: Iterable[int], rows: Sequence[PromptRow]) -> list[tuple[Wanted, str]]:
    """Return the completions that rows bring, prompt by prompt, with their texts."""
    return [
        (Wanted(prompt, index, reward=given.reward), given.text)
        for prompt in prompts
        for index, given in enumerate(rows[prompt].completions)
    ]


def begin_reward(
    rewarding: Rewarding, rows: Sequence[PromptRow], wanted: Wanted, text: str
) -> Future[Rated]:
    """Begin to reward an answer, unless its reward is known.

    Raises:
        RewardError: The reward has failed for an earlier one.
    """
    if wanted.reward is not None:
        return already_rated(wanted.reward)
    row = rows[wanted.prompt]
    which = "the greedy answer" if wanted.index == GREEDY else f"sample {wanted.index}"
    return rewarding.add(row.fields, text, f"prompt of line {row.line}, {which}")
