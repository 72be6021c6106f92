"""How many prompts may vote at a time, in a way that takes processes, and for how long."""

from qprobe_server.errors import RequestError

__all__ = ["PROMPT_S", "QueuedVote", "VoteQueue"]

# Of a prompt, from when its candidates are written, whatever is before them.
PROMPT_S = 30.0
_RETRY_AFTER_S = 2
_PARAM = "q_probe.vote"


class VoteQueue:
    """The places of prompts that vote in one way; one for a server. Of the event loop.

    Args:
        by: That way.
        max_prompts: That may vote at a time, sampling included, >= 1.
        flag: Of the command line that says so, if one does.
    """

    def __init__(self, by: str, *, max_prompts: int, flag: str | None = None) -> None:
        self._max_prompts = max_prompts
        self._num_prompts = 0
        self._limit = f"{max_prompts} prompts may vote by {by} at a time"
        self._limit += f" ({flag})" if flag else ""

    def check(self, num_prompts: int, field: str) -> None:
        """Check that a request's prompts find room, if nobody else is there.

        Raises:
            RequestError: 400; they never do.
        """
        if num_prompts > self._max_prompts:
            raise RequestError(f"{field}: has {num_prompts} prompts, {self._limit}", param=field)

    def begin(self, num_prompts: int) -> None:
        """Take places for prompts, before they are sampled.

        Raises:
            RequestError: 503; there are not so many left.
        """
        if self._num_prompts + num_prompts > self._max_prompts:
            raise RequestError(
                f"{_PARAM}: {self._limit}, and {self._num_prompts} do: try again later",
                param=_PARAM,
                status=503,
                retry_after_s=_RETRY_AFTER_S,
            )
        self.add(num_prompts)

    def add(self, num_prompts: int) -> None:
        """Note prompts that vote, whether there is room or not."""
        self._num_prompts += num_prompts

    def remove(self, num_prompts: int) -> None:
        """Note that they have ended."""
        self._num_prompts -= num_prompts


class QueuedVote:
    """A request's vote that has places in a queue, until the request and its prompts have ended.

    Args:
        queue: The places.
        num_prompts: How many it takes.
    """

    def __init__(self, queue: VoteQueue, num_prompts: int) -> None:
        self._queue = queue
        self._num_prompts = num_prompts
        self._num_holders = 0

    async def begin(self) -> None:
        """Take the places, for the request.

        Raises:
            RequestError: 503; there are not so many left.
        """
        self._queue.begin(self._num_prompts)
        self._num_holders += 1

    def hold(self) -> None:
        """Keep the places for a prompt; they are taken again if the request has ended."""
        if not self._num_holders:
            self._queue.add(self._num_prompts)
        self._num_holders += 1

    def end(self) -> None:
        """End a ``begin`` or a ``hold``; after the last the places are given back."""
        self._num_holders -= 1
        if not self._num_holders:
            self._queue.remove(self._num_prompts)
