"""A request while it is reranked, and what came of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

from qprobe.rewards.equal import Classes
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.result import dump_result
from qprobe_server.choice.schemas import QProbeReply, ResultReply

__all__ = ["Rerank", "current_rerank"]


class Rerank:
    """What is known of a request so far; the engine fills it.

    Attributes:
        request: What is asked.
        k: Candidates per prompt: what is asked, or 1 once the request turns out to sample greedily.
        num_prompts: How many have begun.
        results: One per prompt, by the prompt's index in the request; none for a prompt that the
            engine gave up on.
    """

    def __init__(self, request: RerankRequest) -> None:
        self.request = request
        self.k = request.k
        self._notices = [] if request.notice is None else [request.notice]
        self.num_prompts = 0
        self.results: dict[int, ResultReply] = {}
        self._dumped: dict[int, bytes] = {}

    def next_prompt(self) -> int:
        """Return the index of the next prompt of this request, in the order they are started."""
        self.num_prompts += 1
        return self.num_prompts - 1

    def keep_greedy(self) -> None:
        """Sample one candidate: greedily all would be the same."""
        if self.k > 1:
            self.k = 1
            self.tell("temperature 0 leaves one candidate: the greedy one")

    def tell(self, notice: str) -> None:
        """Have the reply tell something more, once."""
        if notice not in self._notices:
            self._notices.append(notice)

    @property
    def notice(self) -> str | None:
        """Something that the client should know of how the request was read, or None."""
        return "; ".join(self._notices) or None

    async def begin(self) -> None:
        """Take the places that the prompts need, if they need some; ``end`` gives them back.

        Raises:
            RequestError: 503, there is no room; 400, the vote is seen not to be valid.
        """
        if self.request.vote is not None:
            await self.request.vote.begin()

    def end(self) -> None:
        """Give back what ``begin`` has taken."""
        if self.request.vote is not None:
            self.request.vote.end()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the places while a prompt runs: in the background it does when all else ended."""
        vote = self.request.vote
        if vote is None:
            yield
            return
        vote.hold()
        try:
            yield
        finally:
            vote.end()

    async def group(self, completions: Sequence[str]) -> Classes | None:
        """Return a prompt's candidates by their answers, None if the request has no vote."""
        if self.request.vote is None:
            return None
        classes = await self.request.vote.group(completions)
        if classes.notice is not None:
            self.tell(classes.notice)
        if not classes.answers:
            self.tell(f"no candidate has an answer by {self.request.vote.by}: the scores decide")
        return classes

    def add(self, prompt_index: int, result: ResultReply) -> None:
        """Note what came of a prompt.

        The result becomes JSON here, which takes long where it shows many tokens: in a thread.
        """
        self._dumped[prompt_index] = dump_result(result)
        self.results[prompt_index] = result

    def reply_json(self) -> bytes:
        """Return the reply's ``q_probe`` object as JSON."""
        request = self.request
        (first, _), *_ = request.probes
        names = {probe.name: weight for probe, weight in request.probes}
        versions = {probe.name: probe.version for probe, _ in request.probes}
        given: dict[str, Any] = {
            "beta": request.beta,
            "target_kl": request.target_kl,
            "schedule": [asdict(step) for step in request.schedule] or None,
            "notice": self.notice,
        }
        reply = QProbeReply(
            probe=names if request.is_mix else first.name,
            version=versions if request.is_mix else first.version,
            k=self.k,
            results=[],
            **{name: value for name, value in given.items() if value is not None},
        )
        results = b",".join(self._dumped.get(index, b"null") for index in range(self.num_prompts))
        # Its last field is the empty list of results.
        head = reply.model_dump_json(exclude_unset=True).encode().removesuffix(b"]}")
        return head + results + b"]}"


# Set around a request by the middleware; the engine reads it in the same task context.
current_rerank: ContextVar[Rerank | None] = ContextVar("current_rerank", default=None)
