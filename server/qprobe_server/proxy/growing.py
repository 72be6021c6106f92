"""One choice of OpenAI's API, put together from the pieces of a stream."""

from collections.abc import Mapping
from typing import Any

__all__ = ["GrowingChoice"]

Json = dict[str, Any]


class GrowingChoice:
    """A choice as far as it has come.

    Attributes:
        text: Of a completion.
        message: Of a chat: the assistant's, with the fields that the pieces have.
        finish_reason: None as long as it goes on.
        logprobs: Of its tokens, in nats; None if there are none.
    """

    def __init__(self) -> None:
        self.text = ""
        self.message: Json = {}
        self.finish_reason: str | None = None
        self.logprobs: list[float] | None = None
        self._calls: dict[int, Json] = {}

    @classmethod
    def of(cls, choice: Mapping[str, Any]) -> "GrowingChoice":
        """Return a choice that came in one piece."""
        made = cls()
        made.add({**choice, "delta": {}})
        made.message = _split_content(choice.get("message") or {})
        return made

    def add(self, choice: Mapping[str, Any]) -> None:
        """Take a chunk's piece of it.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is not what the API promises.
        """
        self.text += choice.get("text") or ""
        for name, value in _split_content(choice.get("delta") or {}).items():
            if name == "tool_calls":
                for call in value or ():
                    self._add_call(call)
            elif name != "role" and isinstance(self.message.get(name), str) and value is not None:
                self.message[name] += value
            elif value is not None:
                self.message[name] = value
        reason = choice.get("finish_reason")
        if not isinstance(reason, str | None):
            raise TypeError("finish_reason")
        self.finish_reason = reason or self.finish_reason
        self._add_logprobs(choice.get("logprobs") or {})

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(
            self._find_index(piece),
            {"type": "function", "function": {"name": "", "arguments": ""}},
        )
        for name in ("id", "type"):
            if piece.get(name):
                call[name] = piece[name]
        for name, value in (piece.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (value or "")

    def _find_index(self, piece: Mapping[str, Any]) -> int:
        """Return whose piece it is; where a server does not number calls, a new id begins one."""
        index: int | None = piece.get("index")
        if index is not None:
            return index
        last = max(self._calls, default=-1)
        if not piece.get("id"):
            return max(last, 0)
        same = (place for place, call in self._calls.items() if call.get("id") == piece["id"])
        return next(same, last + 1)

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        tokens = logprobs.get("content")  # of a chat
        if tokens is None:
            added = logprobs.get("token_logprobs")
        else:
            added = [each["logprob"] for each in tokens]
        if added is not None:
            # A prompt's first token, where it is repeated, has none.
            self.logprobs = self.logprobs or []
            self.logprobs += [each for each in added if each is not None]

    def finish_message(self) -> Json:
        """Return the assistant's message as a chat goes on with it."""
        message = {"role": "assistant", "content": None, **self.message}
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        reasoning = message.pop("reasoning", None)  # as newer servers call it
        if reasoning and not message.get("reasoning_content"):
            message["reasoning_content"] = reasoning
        return {
            name: value for name, value in message.items() if name == "content" or value is not None
        }


def _split_content(message: Mapping[str, Any]) -> Json:
    """Return a message, or a piece of one, with its content as text.

    Mistral's reasoning models give a list of parts instead, and what they think among these.
    """
    made = dict(message)
    content = made.get("content")
    if isinstance(content, list):
        made["content"] = _join(content, "text")
        reasoning = _join(content, "thinking")
        if reasoning:
            made["reasoning_content"] = (made.get("reasoning_content") or "") + reasoning
    return made


def _join(parts: object, kind: str) -> str:
    """Return the text of the parts of a type; parts of thinking have parts of text in them."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    found = [each for each in parts if isinstance(each, Mapping) and each.get("type") == kind]
    return "".join(_join(each.get(kind), "text") for each in found)
