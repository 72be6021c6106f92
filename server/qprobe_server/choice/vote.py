"""Votes: which candidates give the same answer, as a request asks for it to be read.

Reading blocks: it runs in threads, a few for all requests, so that nothing waits for it but the
prompts that vote.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from qprobe.errors import RewardError
from qprobe.rewards.equal import (
    Classes,
    Grouping,
    group_json,
    group_numbers,
    group_texts,
    make_regex,
)
from qprobe.rewards.pattern import check_pattern
from qprobe_server.choice.code_vote import CodeRunner, make_code_vote
from qprobe_server.choice.schemas import show
from qprobe_server.choice.vote_schemas import VoteRequest
from qprobe_server.errors import RequestError, ScoringError

__all__ = ["Vote", "VoteReader"]

_READERS: dict[str, Grouping] = {
    "numeric": group_numbers,
    "json": group_json,
    "text": group_texts,
}
# A text of 100,000 characters takes some milliseconds.
_NUM_READERS = 2
# A pattern takes a process, and up to 4 s of a core.
_NUM_SEARCHES = 2
_PARAM = "q_probe.vote"
# What the fields beside ``by`` belong to.
_BELONGS = {
    "pattern": "regex",
    **dict.fromkeys(("inputs", "tests", "setup", "entry_point"), "code"),
}


class Vote(Protocol):
    """How the candidates of a request vote.

    Attributes:
        by: What is compared.
    """

    by: str

    def begin(self) -> None:
        """Take a place for the request, before it is sampled; ``end`` gives it back.

        Raises:
            RequestError: 503; there is none left.
        """

    def end(self) -> None:
        """Give back the place."""

    async def group(self, completions: Sequence[str]) -> Classes:
        """Return the classes of a prompt's candidates.

        Raises:
            ScoringError: They cannot be told.
        """


class _ReadingVote:
    """A vote by what is read in the texts alone; there is room for any number."""

    def __init__(self, by: str, group: Grouping, threads: ThreadPoolExecutor) -> None:
        self.by = by
        self._group = group
        self._threads = threads

    def begin(self) -> None: ...

    def end(self) -> None: ...

    async def group(self, completions: Sequence[str]) -> Classes:
        """Return the classes of a prompt's candidates."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._group, completions)
        except RewardError as error:
            raise ScoringError(f"a vote by {self.by} could not be held") from error


class VoteReader:
    """Makes votes of what requests ask; one for a server, whose threads they share.

    Args:
        runner: Runs code, or None if none is to be run.
    """

    def __init__(self, runner: CodeRunner | None = None) -> None:
        self._runner = runner
        self._readers = ThreadPoolExecutor(_NUM_READERS, "vote")
        self._searches = ThreadPoolExecutor(_NUM_SEARCHES, "vote-regex")

    def read(self, asked: VoteRequest) -> Vote:
        """Return the vote that is asked for.

        Raises:
            RequestError: 400; a field is missing, belongs to another vote, or is not valid, or the
                server runs no code.
        """
        for name, by in _BELONGS.items():
            if getattr(asked, name) is not None and asked.by != by:
                raise RequestError(
                    f"{_PARAM}.{name}: belongs to a vote by {by!r}, not by {asked.by!r}",
                    param=f"{_PARAM}.{name}",
                )
        if asked.by == "code":
            return make_code_vote(asked, self._runner)
        if asked.by == "regex":
            return _ReadingVote(asked.by, _read_pattern(asked), self._searches)
        return _ReadingVote(asked.by, _READERS[asked.by], self._readers)


def _read_pattern(asked: VoteRequest) -> Grouping:
    param = f"{_PARAM}.pattern"
    if asked.pattern is None:
        raise RequestError(f"{param}: is missing, a vote by 'regex' needs it", param=param)
    try:
        check_pattern(asked.pattern)
    except ValueError as error:
        raise RequestError(f"{param}: {error}, got {show(asked.pattern)}", param=param) from error
    return make_regex(asked.pattern)
