"""Anthropic's Messages API: its requests, its replies, its streams."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qprobe_server.choice.fields import read_lax
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import UpstreamError
from qprobe_server.proxy.answers import Answer, Body, Candidate, check_list, reading
from qprobe_server.proxy.anthropic_chat import convert_answer, convert_chat, convert_tools
from qprobe_server.proxy.chat_prompt import make_chat_prompt
from qprobe_server.proxy.events import read_events
from qprobe_server.proxy.reader import Prompt, Written
from qprobe_server.proxy.upstream import Reply
from qprobe_server.proxy.usage import Usage, count_of, read_usage

__all__ = ["Messages"]

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# Where the pieces of a block go.
_DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "signature_delta": "signature",
}


class Messages:
    """``/v1/messages``."""

    has_n = False

    def read_prompts(self, body: Body) -> list[Prompt]:
        """See ``Format``."""
        messages = convert_chat(body.get("system"), check_list(body, "messages"))
        tools = convert_tools(body.get("tools"))
        return [make_chat_prompt(body, messages, tools, is_begun=True)]

    def ask(self, body: Body, prompt_index: int, candidate_index: int, num: int) -> Body:
        """See ``Format``; this API gives one answer a request, and takes no seed."""
        return body

    def max_tokens(self, body: Body) -> Mapping[str, object]:
        """See ``Format``."""
        return {"max_tokens": body.get("max_tokens")}

    async def read(self, reply: Reply, body: Body) -> Answer:
        """See ``Format``."""
        return await reading(_read(reply, body))

    def join(self, winners: Sequence[Candidate], body: Body) -> bytes:
        """See ``Format``."""
        (winner,) = winners
        return winner.answer.raw

    def replay(self, winners: Sequence[Candidate], body: Body) -> Iterator[bytes]:
        """See ``Format``."""
        (winner,) = winners
        for event in winner.answer.events:
            yield event.dump()


async def _read(reply: Reply, body: Body) -> Answer:
    return await _read_stream(reply) if reply.is_stream else _read_json(reply, body)


def _read_json(reply: Reply, body: Body) -> Answer:
    message = json.loads(reply.body)
    usage = read_usage(message["usage"])
    if read_lax(body.get("stream"), bool):
        raise UpstreamError("no stream")
    return Answer(
        raw=reply.body,
        parts=[message],
        events=(),
        choices=[_convert_answer(message["content"], message.get("stop_reason"), usage)],
        usage=usage,
    )


async def _read_stream(reply: Reply) -> Answer:
    events, parts = [], []
    growing = _Growing()
    turns = Turns()
    for event in read_events(reply.body):
        await turns.give_way()
        part = json.loads(event.data)
        growing.add(part)
        events.append(event)
        parts.append(part)
    if not growing.is_done:
        raise UpstreamError("a stream that was cut off")
    usage = read_usage(growing.usage)
    return Answer(
        raw=b"",
        parts=parts,
        events=events,
        choices=[_convert_answer(growing.finish(), growing.stop_reason, usage)],
        usage=usage,
    )


class _Growing:
    """A message as far as its events have come."""

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.usage: Body = {}
        self.is_done = False
        self._blocks: dict[int, Body] = {}

    def add(self, part: Mapping[str, Any]) -> None:
        """Take the data of an event."""
        match part["type"]:
            case "error":
                raise UpstreamError("an error instead of an answer")
            case "message_start":
                self.usage |= part["message"].get("usage") or {}
            case "content_block_start":
                self._blocks[part["index"]] = dict(part["content_block"])
            case "content_block_delta":
                _add_delta(self._blocks[part["index"]], part["delta"])
            case "message_delta":
                self.stop_reason = part["delta"].get("stop_reason") or self.stop_reason
                self.usage |= part.get("usage") or {}
            case "message_stop":
                self.is_done = True

    def finish(self) -> list[Body]:
        """Return its content; the input of a call that was cut stays a text."""
        content = [block for _, block in sorted(self._blocks.items())]
        for block in content:
            if block.get("partial_json"):
                block["input"] = _parse_input(block.pop("partial_json"))
        return content


def _parse_input(text: str) -> Body | str:
    """Return the input of a tool; the text itself, if it is no whole object."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return parsed if isinstance(parsed, dict) else text


def _add_delta(block: Body, delta: Mapping[str, Any]) -> None:
    name = _DELTAS.get(delta["type"])
    if name is not None:  # else citations and the like, which are no text
        block[name] = block.get(name, "") + delta.get(name, "")


def _convert_answer(
    content: Sequence[Mapping[str, Any]], stop_reason: str | None, usage: Usage | None
) -> Written:
    message = convert_answer(content)
    return Written(
        text=message["content"] or "",
        message=message,
        finish_reason=None if stop_reason is None else _FINISH_REASONS.get(stop_reason, "stop"),
        num_tokens=count_of(usage, "output_tokens"),
    )
