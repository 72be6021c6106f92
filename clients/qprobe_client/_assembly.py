"""From the bytes of a streamed chat to its pieces of text, and to the completion in the end."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from qprobe_client._calls import Call
from qprobe_client._events import EventDecoder
from qprobe_client._fields import Fields
from qprobe_client._replies import make_error, pair_results, parse_reranks, parse_usage
from qprobe_client.errors import APIError, ClientError, ReplyError, TransportError
from qprobe_client.results import (
    Answer,
    Completion,
    Rerank,
    TextDelta,
    ToolCall,
    Usage,
)

__all__ = ["Assembly"]

_END = "[DONE]"


@dataclass
class _Parts:
    """Of one tool call."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass
class _Growing:
    """One answer, as far as it has come."""

    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    calls: dict[int, _Parts] = field(default_factory=dict)

    def answer(self) -> Answer:
        calls = [
            ToolCall(call.id, call.name, "".join(call.arguments))
            for _, call in sorted(self.calls.items())
        ]
        return Answer("".join(self.text), self.finish_reason, calls)


class Assembly:
    """One stream.

    Args:
        call: What was asked, to name it in errors.
        headers: Of the reply.

    Raises:
        ReplyError: The reply is not a stream.
    """

    def __init__(self, call: Call, headers: httpx.Headers) -> None:
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise ReplyError(f"{call}: the reply is not a stream of events")
        self.is_done = False
        self._call = call
        self._request_id = headers.get("x-request-id")
        self._decoder = EventDecoder()
        self._answers: dict[int, _Growing] = {}
        self._usage: Usage | None = None
        self._reranks: list[Rerank | None] | None = None

    def feed(self, piece: bytes) -> Iterator[TextDelta]:
        """Take the next bytes, and give the text in them; sets ``is_done`` at the stream's end.

        Raises:
            APIError: The server failed while it streamed.
            ReplyError: An event is not what it should be.
        """
        for data in self._decoder.feed(piece):
            if data.strip() == _END:
                self.is_done = True
                return
            try:
                chunk = json.loads(data)
            except ValueError as error:
                raise ReplyError(f"{self._call}: an event is not JSON: {error}") from error
            yield from self._take(chunk)

    def finish(self) -> None:
        """Take the end of the connection.

        Raises:
            TransportError: It came before the stream's end.
        """
        if not self.is_done:
            raise TransportError(f"{self._call}: the stream broke off before its end")

    def completion(self) -> Completion:
        """Return what the stream came to.

        Raises:
            ClientError: It has not been read to its end.
            ReplyError: It ended without answers, or without their usage.
        """
        if not self.is_done:
            raise ClientError(f"{self._call}: the stream was left before its end")
        if self._usage is None:
            raise ReplyError(f"{self._call}: the stream had no usage")
        answers = [growing.answer() for _, growing in sorted(self._answers.items())]
        return Completion(pair_results(answers, self._reranks, num_prompts=1), self._usage)

    def _take(self, event: Any) -> Iterator[TextDelta]:
        chunk = Fields(event)
        if "error" in chunk:
            raise self._failure(event)
        if "usage" in chunk:
            self._usage = parse_usage(chunk)
        if "q_probe" in chunk:
            self._reranks = parse_reranks(chunk)
        for choice in chunk.each("choices"):
            index, delta = choice.get("index", int), choice.below("delta")
            growing = self._answers.setdefault(index, _Growing())
            growing.finish_reason = choice.find("finish_reason", str) or growing.finish_reason
            for call in delta.each("tool_calls") if "tool_calls" in delta else []:
                _grow(growing.calls.setdefault(call.get("index", int), _Parts()), call)
            if text := delta.find("content", str):
                growing.text.append(text)
                yield TextDelta(text, index)

    def _failure(self, event: dict[str, Any]) -> APIError:
        error = event["error"]
        code = error.get("code") if isinstance(error, dict) else None
        return make_error(
            event,
            status=code if isinstance(code, int) and code >= 400 else 500,
            reason="the server failed while it streamed",
            request_id=self._request_id,
        )


def _grow(parts: _Parts, call: Fields) -> None:
    parts.id = call.find("id", str) or parts.id
    if "function" in call:
        function = call.below("function")
        parts.name = function.find("name", str) or parts.name
        parts.arguments.append(function.find("arguments", str) or "")
