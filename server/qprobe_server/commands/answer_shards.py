"""A shard of a dataset, of answers that nothing here has sampled: what read them embeds them."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qprobe.data.sample import GREEDY, Sample
from qprobe.data.writer import DatasetWriter
from qprobe.rewards.rating import Rated
from qprobe_server.commands.printing import warn
from qprobe_server.commands.wanted import Wanted
from qprobe_server.errors import ReadingError, StartupError
from qprobe_server.proxy.chat_text import write_answer
from qprobe_server.proxy.reader import Written

__all__ = [
    "Answer",
    "Embedded",
    "Embedder",
    "Unread",
    "list_readable",
    "write_shard",
]


@dataclass(frozen=True, eq=False)
class Embedded:
    """What came of reading an answer.

    Attributes:
        embeddings: Shape (readings, hidden), float16.
        token_ids: The reader's tokens of it, as if it had sampled them; empty where nobody tells.
        num_scored: How many of them, from the first, make the embedding.
    """

    embeddings: Tensor
    token_ids: Sequence[int] = ()
    num_scored: int = 0


class Embedder(Protocol):
    """Reads answers.

    Attributes:
        readings: What it gives, as datasets name it.
        hidden_size: Numbers of each.
    """

    readings: list[str]
    hidden_size: int

    def embed(self, answers: Sequence[tuple[int, Written]]) -> Sequence[Embedded | ReadingError]:
        """Embed answers, perhaps none, each with the index of its prompt.

        Returns:
            Of an answer that cannot be read the error, which names the prompt's line.

        Raises:
            ServerError: Nothing can be read now.
        """


@dataclass(frozen=True)
class Answer:
    """An answer that has come; its reward may be on its way.

    Attributes:
        wanted: Which it is.
        written: The answer.
        rated: Its reward.
    """

    wanted: Wanted
    written: Written
    rated: Future[Rated]


def list_readable(answers: Sequence[Answer]) -> list[tuple[int, Written]]:
    """Return what an ``Embedder`` is given of them: all but the greedy ones."""
    return [(each.wanted.prompt, each.written) for each in answers if each.wanted.index != GREEDY]


class Unread:
    """Prompts that have no samples, as an answer cannot be read.

    Without the long answers alone their samples would tell that short ones are better.

    Args:
        skip: Whether there may be such; else the first one is an error.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._errors: list[ReadingError] = []  # one a prompt

    def leave_out(
        self, answers: Sequence[Answer], embedded: Sequence[Embedded | ReadingError]
    ) -> list[tuple[Answer, Embedded | None]]:
        """Return the other prompts' answers with what came of reading them; the greedy with None.

        Args:
            answers: Of whole prompts.
            embedded: What came of ``list_readable`` of them.

        Raises:
            StartupError: There may be none, and there is one.
        """
        reads = iter(embedded)
        both = [(each, None if each.wanted.index == GREEDY else next(reads)) for each in answers]
        errors = {each.wanted.prompt: read for each, read in both if isinstance(read, ReadingError)}
        self._errors += errors.values()
        if errors and not self._skip:
            raise StartupError(
                f"{self._errors[0]}; --on-refusal skip leaves the prompt out"
            ) from self._errors[0]
        return [
            (each, read)
            for each, read in both
            if not isinstance(read, ReadingError) and each.wanted.prompt not in errors
        ]

    def tell(self) -> None:
        """Print how many there are, if any."""
        if self._errors:
            warn(
                "some prompts have no samples, as an answer cannot be read: "
                f"{len(self._errors)}; the first: {self._errors[0]}"
            )


def write_shard(
    writer: DatasetWriter,
    shard: int,
    embedder: Embedder,
    answers: Sequence[tuple[Answer, Embedded | None]],
) -> None:
    """Wait for the rewards, and write a shard.

    Args:
        writer: Of the dataset.
        shard: Its index.
        embedder: That has read them.
        answers: As ``Unread.leave_out`` returns them, in order of prompt and index; perhaps none.

    Raises:
        RewardError: A reward has failed.
    """
    samples = [_to_sample(answer, read) for answer, read in answers]
    stacked = torch.zeros(0, len(embedder.readings), embedder.hidden_size, dtype=torch.float16)
    embeddings = [read.embeddings for _, read in answers if read is not None]
    if embeddings:
        stacked = torch.stack(embeddings)  # (samples, readings, hidden)
    writer.write(shard, samples, {name: stacked[:, i] for i, name in enumerate(embedder.readings)})


def _to_sample(answer: Answer, read: Embedded | None) -> Sample:
    written, rated = answer.written, answer.rated.result()
    logprobs = written.logprobs
    return Sample(
        prompt=answer.wanted.prompt,
        index=answer.wanted.index,
        text=write_answer(written),
        token_ids=list(read.token_ids) if read else [],
        num_scored=read.num_scored if read else 0,
        logprob=None if logprobs is None else sum(logprobs),
        finish_reason=written.finish_reason or "unknown",
        seed=answer.wanted.seed,
        reward=rated.reward,
        reason=rated.reason,
    )
