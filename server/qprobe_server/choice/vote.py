"""Votes: which candidates give the same answer, as a request asks for it to be read.

Reading blocks: it runs in threads, a few for all requests, so that nothing waits for it but the
prompts that vote.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from qprobe.rewards.equal import READERS, Classes, Grouping
from qprobe_server.choice.code_vote import CodeRunner, make_code_vote
from qprobe_server.choice.search_vote import Searcher, SearchVote
from qprobe_server.choice.vote_schemas import VoteRequest
from qprobe_server.errors import RequestError

__all__ = ["Vote", "VoteReader"]

# A text of 100,000 characters takes some milliseconds.
_NUM_READERS = 2
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

    async def begin(self) -> None:
        """Take places for the request's prompts, before they are sampled; ``end`` gives them back.

        Raises:
            RequestError: 503, there is no room; 400, a field is seen not to be valid.
        """

    def hold(self) -> None:
        """Keep the places for a prompt that begins; ``end`` lets go of them."""

    def end(self) -> None:
        """Give back the places, unless somebody still holds them."""

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

    async def begin(self) -> None: ...

    def hold(self) -> None: ...

    def end(self) -> None: ...

    async def group(self, completions: Sequence[str]) -> Classes:
        """Return the classes of a prompt's candidates."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._group, completions)


class VoteReader:
    """Makes votes of what requests ask; one for a server, whose threads they share.

    Args:
        runner: Runs code, or None if none is to be run.
    """

    def __init__(self, runner: CodeRunner | None = None) -> None:
        self._runner = runner
        self._readers = ThreadPoolExecutor(_NUM_READERS, "vote")
        self._searcher = Searcher()

    def read(self, asked: VoteRequest, *, num_prompts: int = 1, field: str = "prompt") -> Vote:
        """Return the vote that is asked for.

        Args:
            asked: By the request.
            num_prompts: Of the request, >= 1.
            field: That has them.

        Raises:
            RequestError: 400; a field is missing, belongs to another vote, or is not valid, there
                are too many prompts, or the server runs no code.
        """
        for name, by in _BELONGS.items():
            if getattr(asked, name) is not None and asked.by != by:
                raise RequestError(
                    f"{_PARAM}.{name}: belongs to a vote by {by!r}, not by {asked.by!r}",
                    param=f"{_PARAM}.{name}",
                )
        if asked.by == "code":
            return make_code_vote(asked, self._runner, num_prompts=num_prompts, field=field)
        if asked.by == "regex":
            return self._read_search(asked.pattern, num_prompts, field)
        return _ReadingVote(asked.by, READERS[asked.by], self._readers)

    def _read_search(self, pattern: str | None, num_prompts: int, field: str) -> Vote:
        if pattern is None:
            param = f"{_PARAM}.pattern"
            raise RequestError(f"{param}: is missing, a vote by 'regex' needs it", param=param)
        self._searcher.queue.check(num_prompts, field)
        return SearchVote(pattern, self._searcher, num_prompts)
