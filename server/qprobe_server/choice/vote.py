"""Votes: which candidates give the same answer, as a request asks for it to be read.

Reading blocks: it runs in threads, a few for all requests, so that nothing waits for it but the
prompts that vote.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from qprobe.rewards.equal import (
    Classes,
    Grouping,
    group_json,
    group_numbers,
    group_texts,
    make_regex,
)
from qprobe.rewards.pattern import check_pattern
from qprobe_server.choice.schemas import VoteRequest, show
from qprobe_server.errors import RequestError

__all__ = ["Vote", "VoteReader"]

_READERS: dict[str, Grouping] = {
    "numeric": group_numbers,
    "json": group_json,
    "text": group_texts,
}
# A text of 100,000 characters takes some milliseconds, a pattern a process and up to 4 s.
_NUM_THREADS = 2
_PARAM = "q_probe.vote"
# Fields beside ``by``, and what they belong to.
_FIELDS = {"pattern": "regex"}


class Vote(Protocol):
    """How the candidates of a request vote.

    Attributes:
        by: What is compared.
    """

    by: str

    async def group(self, completions: Sequence[str]) -> Classes:
        """Return the classes of a prompt's candidates."""


class _ReadingVote:
    """A vote by what is read in the texts alone."""

    def __init__(self, by: str, group: Grouping, threads: ThreadPoolExecutor) -> None:
        self.by = by
        self._group = group
        self._threads = threads

    async def group(self, completions: Sequence[str]) -> Classes:
        """Return the classes of a prompt's candidates."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._group, completions)


class VoteReader:
    """Makes votes of what requests ask; one for a server, whose threads they share."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "vote")

    def read(self, asked: VoteRequest) -> Vote:
        """Return the vote that is asked for.

        Raises:
            RequestError: 400; a field is missing, belongs to another vote, or is not valid.
        """
        for name, by in _FIELDS.items():
            if getattr(asked, name) is not None and asked.by != by:
                raise RequestError(
                    f"{_PARAM}.{name}: belongs to a vote by {by!r}, not by {asked.by!r}",
                    param=f"{_PARAM}.{name}",
                )
        group = self._read_pattern(asked) if asked.by == "regex" else _READERS[asked.by]
        return _ReadingVote(asked.by, group, self._threads)

    def _read_pattern(self, asked: VoteRequest) -> Grouping:
        param = f"{_PARAM}.pattern"
        if asked.pattern is None:
            raise RequestError(f"{param}: is missing, a vote by 'regex' needs it", param=param)
        try:
            check_pattern(asked.pattern)
        except ValueError as error:
            raise RequestError(
                f"{param}: {error}, got {show(asked.pattern)}", param=param
            ) from error
        return make_regex(asked.pattern)
