"""Samples the candidates of one prompt from an upstream."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import httpx

from qprobe_server.choice.fields import read_lax
from qprobe_server.edge import body as bodies
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import UpstreamError
from qprobe_server.proxy.answers import Answer, Body, Candidate, Format
from qprobe_server.proxy.headers import Header
from qprobe_server.proxy.upstream import Reply, Upstream
from qprobe_server.proxy.usage import Usage

__all__ = ["Asked", "Sample", "sample"]

# Made anew for every candidate.
_OWN = (b"content-length", b"content-type", b"accept", b"accept-encoding")
# An upstream may take one for the request's, and then a second candidate for a repetition.
_IDS = (b"x-request-id", b"idempotency-key")
# Has a stream say what it has used. Not every server takes it.
_USAGE_OPTION = "stream_options"
_DISLIKED = (400, 422)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What candidates are asked for with.

    Attributes:
        upstream: Whom.
        format: Of the route.
        url: Where.
        headers: As the upstream gets them, its key included.
        body: The client's, without what is ours.
        has_n: Whether the upstream gives several choices when it is asked for several.
    """

    upstream: Upstream
    format: Format
    url: httpx.URL
    headers: Sequence[Header]
    body: Body
    has_n: bool = False


@dataclass(frozen=True)
class Sample:
    """The candidates of one prompt.

    Attributes:
        candidates: Those that came, in the order of their seeds.
        usages: What the upstream counts, reply by reply, as far as it says.
        failures: Why others did not come, in a few words each.
    """

    candidates: Sequence[Candidate]
    usages: Sequence[Usage]
    failures: Sequence[str]

    def describe_failures(self) -> str | None:
        """Return for a notice how many candidates are missing, and why; None if none is."""
        if not self.failures:
            return None
        num_wanted = len(self.candidates) + len(self.failures)
        why = ", ".join(f"{said} ({n})" for said, n in Counter(self.failures).items())
        return f"{len(self.failures)} of {num_wanted} candidates are missing: {why}"


async def sample(asked: Asked, prompt_index: int, *, k: int, deadline_s: float) -> Sample:
    """Sample the candidates of a prompt, side by side; a cancelled call leaves none running.

    Args:
        asked: How.
        prompt_index: Of the prompt in the request.
        k: How many are wanted.
        deadline_s: On the event loop's clock: what is not there by then has failed.

    Raises:
        UpstreamError: None came; the upstream's own error, where it gave one.
    """
    turns = Turns()  # a request may have thousands of candidates
    ask = partial(_ask, asked, prompt_index, deadline_s=deadline_s, turns=turns)
    answers: list[Answer] = []
    errors: list[UpstreamError] = []
    await turns.give_way()
    async with asyncio.TaskGroup() as group:
        if asked.has_n:
            tasks = [group.create_task(ask(0, k))]
        else:
            tasks = [group.create_task(ask(index, 1)) for index in range(k)]
    for task in tasks:
        came = task.result()
        if isinstance(came, UpstreamError):
            errors.append(came)
        else:
            answers.append(came)
    if not answers:
        raise next((each for each in errors if each.own is not None), errors[0])
    candidates = [
        Candidate(prompt_index, answer, place)
        for answer in answers
        for place in range(min(len(answer.choices), k) if asked.has_n else 1)
    ]
    failures = [str(each) for each in errors]
    if asked.has_n:
        failures += ["the upstream gave fewer choices"] * (k - len(candidates))
    usages = [each.usage for each in answers if each.usage is not None]
    return Sample(candidates, usages, failures)


async def _ask(
    asked: Asked,
    prompt_index: int,
    candidate_index: int,
    num: int,
    *,
    deadline_s: float,
    turns: Turns,
) -> Answer | UpstreamError:
    await turns.give_way()
    body = asked.format.ask(asked.body, prompt_index, candidate_index, num)
    suffix = f"{prompt_index}-{candidate_index}"
    try:
        try:
            reply = await _post(asked, suffix, body, deadline_s)
        except UpstreamError as error:
            if (
                error.status not in _DISLIKED
                or _USAGE_OPTION not in body.keys() - asked.body.keys()
            ):
                raise
            # It may know no such field, which is ours: the client has not asked for it.
            body = {name: value for name, value in body.items() if name != _USAGE_OPTION}
            reply = await _post(asked, f"{suffix}-again", body, deadline_s)
        if reply.is_stream and not read_lax(body.get("stream"), bool):
            raise UpstreamError("a stream that was not asked for")
        await turns.give_way()  # the replies of k candidates often come together
        return await asked.format.read(reply, body)
    except UpstreamError as error:
        return error


async def _post(asked: Asked, suffix: str, body: Body, deadline_s: float) -> Reply:
    """Ask with this body, under ids with this suffix: each body needs ids of its own."""

    def make() -> httpx.Request:
        headers = _make_headers(asked.headers, suffix)
        return httpx.Request("POST", asked.url, headers=headers, content=bodies.write(body))

    return await asked.upstream.ask(make, deadline_s=deadline_s)


def _make_headers(headers: Sequence[Header], suffix: str) -> list[Header]:
    made = [(name, value) for name, value in headers if name not in _OWN]
    made = [
        (name, value + b"-" + suffix.encode() if name in _IDS else value) for name, value in made
    ]
    return [*made, (b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
