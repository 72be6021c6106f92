"""Votes by what a pattern finds in candidates: a few searches at a time, in a bounded queue.

Compiling a pattern of a client's can take a second, and a search any time: both are done in
processes of their own (``qprobe.rewards.pattern``), within limits, never on the event loop.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event

from qprobe.errors import RewardError
from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.equal import Classes, make_regex
from qprobe.rewards.pattern import check_pattern_apart
from qprobe_server.choice.fair_pool import FairPool, Share
from qprobe_server.choice.schemas import show
from qprobe_server.choice.vote_queue import PROMPT_S, QueuedVote, VoteQueue
from qprobe_server.errors import RequestError, ScoringError

__all__ = ["SearchVote", "Searcher"]

_PARAM = "q_probe.vote.pattern"
# A search takes a process, and up to 4 s of a core.
_NUM_SEARCHES = 2
# More than an engine samples at a time, with a few candidates each.
_MAX_PROMPTS = 256


class Searcher:
    """Searches for votes; one for a server.

    Attributes:
        queue: Of prompts that vote so.
        searches: Threads that wait for searches.
        checks: Threads that wait for patterns to be compiled, which waits for no search.
    """

    def __init__(self) -> None:
        self.queue = VoteQueue(SearchVote.by, max_prompts=_MAX_PROMPTS)
        self.searches = FairPool(_NUM_SEARCHES, "vote-regex")
        self.checks = ThreadPoolExecutor(_NUM_SEARCHES, "vote-pattern")


class SearchVote(QueuedVote):
    """A vote by what a pattern finds.

    Args:
        pattern: Of the request, not yet checked.
        searcher: Searches for it.
        num_prompts: Of the request.
    """

    by = "regex"

    def __init__(self, pattern: str, searcher: Searcher, num_prompts: int) -> None:
        super().__init__(searcher.queue, num_prompts)
        self._pattern = pattern
        self._searcher = searcher
        self._share = Share()

    async def begin(self) -> None:
        """Take the places, and check the pattern.

        Raises:
            RequestError: 400, it is no pattern; 503, there is no room.
        """
        await super().begin()
        try:
            await self._check()
        except BaseException:  # a request that was cancelled too gives its places back
            self.end()
            raise

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._searcher.checks, check_pattern_apart, self._pattern)
        except ValueError as error:
            said = f"{_PARAM}: {error}, got {show(self._pattern)}"
            raise RequestError(said, param=_PARAM) from error
        except RewardError as error:
            raise RequestError(f"{_PARAM}: {error}", param=_PARAM, status=503) from error

    async def group(self, completions: Sequence[str]) -> Classes:
        """Search a prompt's candidates and return their classes; a caller that leaves ends it.

        Raises:
            ScoringError: The search could not be run.
        """
        stop = Event()
        search = partial(make_regex(self._pattern, stop=stop), completions)
        job = self._searcher.searches.submit(self._share, search)
        future = asyncio.wrap_future(job)
        try:
            in_time, _ = await asyncio.wait({future}, timeout=PROMPT_S)
            stop.set()  # what is found so far counts
            classes = Classes([NO_CLASS] * len(completions), []) if job.cancel() else await future
        except RewardError as error:
            raise ScoringError(f"a vote by {self.by} could not be held") from error
        finally:
            stop.set()
            future.cancel()
        if in_time:
            return classes
        notice = (
            f"the {PROMPT_S:g} s of a vote were over before all candidates had been searched: "
            "those left have no answer"
        )
        return replace(classes, notice=notice)
