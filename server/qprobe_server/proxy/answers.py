"""What an upstream gave to one request, and what it counts for it. Of any API."""

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qprobe_server.errors import RequestError, UpstreamError
from qprobe_server.proxy.chat_text import mend
from qprobe_server.proxy.events import Event
from qprobe_server.proxy.reader import Prompt, Written
from qprobe_server.proxy.upstream import Reply
from qprobe_server.proxy.usage import Usage

__all__ = ["Answer", "Body", "Candidate", "Format", "check_list", "reading"]

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One reply of an upstream.

    Attributes:
        raw: Its bytes; empty if it is a stream.
        parts: Its JSON, as the one part; or of a stream the JSON of its events.
        events: Of a stream, as many as there are parts; else empty.
        choices: The completions in it.
        usage: What the upstream counts for it; None if it does not say.
    """

    raw: bytes
    parts: Sequence[Body]
    events: Sequence[Event]
    choices: Sequence[Written]
    usage: Usage | None


@dataclass(frozen=True)
class Candidate:
    """One completion, and where it is in its reply.

    Attributes:
        prompt_index: Of its prompt in the request.
        answer: The reply.
        place: Its index among the reply's choices.
    """

    prompt_index: int
    answer: Answer
    place: int

    @property
    def written(self) -> Written:
        """The completion."""
        return self.answer.choices[self.place]


class Format(Protocol):
    """How the requests and replies of one route look.

    Attributes:
        has_n: Whether a request may ask for several choices.
    """

    has_n: bool

    def read_prompts(self, body: Body) -> list[Prompt]:
        """Return the prompts of a request.

        Raises:
            RequestError: 400, there is none that anybody else than the upstream can read.
        """

    def ask(self, body: Body, prompt_index: int, candidate_index: int, num: int) -> Body:
        """Return the body of a request for candidates of one prompt.

        Args:
            body: The client's, without what is ours; stays as it is.
            prompt_index: Of the prompt.
            candidate_index: Of the first candidate: the seed is raised by it.
            num: How many choices to ask for.
        """

    def max_tokens(self, body: Body) -> Mapping[str, object]:
        """Return what a request says of the most tokens of an answer, by field; None: nothing."""

    async def read(self, reply: Reply, body: Body) -> Answer:
        """Read a reply to a request with this body; a long stream in turns with others.

        Raises:
            UpstreamError: It is not what the API promises, or was cut off.
        """

    def join(self, winners: Sequence[Candidate], body: Body) -> bytes:
        """Return the JSON reply that answers with these candidates, in their order."""

    def replay(self, winners: Sequence[Candidate], body: Body) -> Iterator[bytes]:
        """Give the events of the stream that answers with these candidates, one at a time."""


async def reading(answer: Awaitable[Answer]) -> Answer:
    """Return what comes of reading a reply, which may hold anything.

    What is told and read of it is Unicode then; the reply itself stays as it came.

    Raises:
        UpstreamError: Reading it fails.
    """
    try:
        made = await answer
        choices = [
            replace(
                each,
                text=mend(each.text),
                message=mend(each.message),
                finish_reason=mend(each.finish_reason),
            )
            for each in made.choices
        ]
        return replace(made, choices=choices, usage=mend(made.usage))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # Without its text, which may quote the reply.
        raise UpstreamError(f"a broken reply ({type(error).__name__})") from None


def check_list(body: Body, name: str) -> list[Any]:
    """Return a list of a request that must not be empty.

    Raises:
        RequestError: 400, it is none.
    """
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name}: must be a list that is not empty", param=name)
    return value
