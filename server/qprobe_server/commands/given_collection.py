"""Makes a dataset of completions that the rows bring, read by an embeddings endpoint."""

from collections.abc import Callable, Sequence

from qprobe.data.prompts import PromptRow
from qprobe.data.writer import DatasetWriter
from qprobe_server.commands.answer_shards import (
    Answer,
    Unread,
    list_readable,
    write_shard,
)
from qprobe_server.commands.embedders import EndpointEmbedder
from qprobe_server.commands.rewarding import Rewarding
from qprobe_server.commands.wanted import begin_reward, list_given
from qprobe_server.proxy.reader import Written

__all__ = ["collect_given_by_endpoint"]


def collect_given_by_endpoint(
    embedder: EndpointEmbedder,
    writer: DatasetWriter,
    rows: Sequence[PromptRow],
    rewarding: Rewarding,
    *,
    skip_unread: bool,
    progress: Callable[[int], object],
) -> None:
    """Write the shards that are missing.

    Args:
        embedder: Of the completions.
        writer: Of the dataset.
        rows: All prompts of the dataset.
        rewarding: Open; for completions without a reward, goes on while they are read.
        skip_unread: Whether a prompt has no samples of which the endpoint does not take one; else
            that is an error.
        progress: Called with the number of completions that were read.

    Raises:
        RewardError: A reward failed; what was written before stays.
        StartupError: The endpoint does not take a completion.
        ReadingError: It gives no embeddings.
    """
    unread = Unread(skip=skip_unread)
    for shard in writer.missing():
        answers = []
        for wanted, text in list_given(writer.prompts_of(shard), rows):
            rated = begin_reward(rewarding, rows, wanted, text)
            # Not what an API says, but as the engine's datasets say it.
            written = Written(text=text, finish_reason="given")
            answers.append(Answer(wanted, written, rated))
        rewarding.flush()
        embedded = embedder.embed(list_readable(answers), progress=progress)
        write_shard(writer, shard, embedder, unread.leave_out(answers, embedded))
    writer.finish()
    unread.tell()
