"""Chats of Anthropic's Messages API said in OpenAI's words, which readers know."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qprobe_server.errors import RequestError

__all__ = ["convert_answer", "convert_chat", "convert_tools"]

Json = dict[str, Any]


def convert_chat(system: object, messages: Sequence[object]) -> list[Json]:
    """Return the messages of a request; results of tools become messages of their own.

    Args:
        system: Of the request: a text, blocks of text, or None.
        messages: Of the request, as the client gave them.

    Raises:
        RequestError: 400, there is what the API does not take, or what no reader can read.
    """
    made: list[Json] = []
    if system:
        made.append({"role": "system", "content": _join_texts(system, "system")})
    for index, message in enumerate(messages):
        place = f"messages.{index}"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise _refuse(place, "must be an object whose role is user or assistant")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise _refuse(f"{place}.content", "must be a text or a list")
        converted = _Converted()
        for number, block in enumerate(blocks):
            where = f"{place}.content.{number}"
            try:
                is_known = converted.add(block, where)
            except (KeyError, TypeError, AttributeError):
                raise _refuse(where, "lacks a field of its type") from None
            if not is_known:
                raise _refuse(where, "content of this type cannot be read by a probe")
        made += converted.finish(message["role"])
    return made


def convert_answer(content: Sequence[Mapping[str, Any]]) -> Json:
    """Return the assistant's message of a reply; blocks that are not its own words are left out."""
    converted = _Converted()
    for block in content:
        converted.add(block, "content")
    (message,) = converted.finish("assistant")
    return message


def convert_tools(tools: object) -> list[Json]:
    """Return the client's own tools; those that the upstream runs itself have no schema."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description") or "",
                "parameters": tool["input_schema"],
            },
        }
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict) and "input_schema" in tool
    ]


class _Converted:
    """One message, block by block."""

    def __init__(self) -> None:
        self._parts: list[Json] = []
        self._calls: list[Json] = []
        self._results: list[Json] = []
        self._reasoning = ""

    def add(self, block: Mapping[str, Any], place: str) -> bool:
        """Take a block; return whether its type is known.

        Raises:
            KeyError, TypeError, AttributeError: It lacks a field, or has another in its place.
        """
        match block["type"]:
            case "text":
                self._parts.append({"type": "text", "text": block["text"] + ""})
            case "image":
                url = _locate_image(block["source"])
                self._parts.append({"type": "image_url", "image_url": {"url": url}})
            case "tool_use":
                given = block["input"]  # a text where it was cut
                arguments = (
                    given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
                )
                function = {"name": block["name"], "arguments": arguments}
                self._calls.append({"id": block["id"], "type": "function", "function": function})
            case "tool_result":
                text = _join_texts(block.get("content") or "", place)
                self._results.append(
                    {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text}
                )
            case "thinking":
                self._reasoning += block["thinking"]
            case "redacted_thinking":
                pass  # nobody can read it
            case _:
                return False
        return True

    def finish(self, role: str) -> list[Json]:
        """Return the results of tools, and the message itself if there is more."""
        made: Json = {"role": role, "content": None}
        if all(part["type"] == "text" for part in self._parts):
            made["content"] = "".join(part["text"] for part in self._parts) or None
        else:
            made["content"] = self._parts
        if self._calls:
            made["tool_calls"] = self._calls
        if self._reasoning:
            made["reasoning_content"] = self._reasoning
        return [*self._results, made] if self._parts or not self._results else self._results


def _locate_image(source: Mapping[str, Any]) -> str:
    if source["type"] == "url":
        return str(source["url"])
    return f"data:{source['media_type']};base64,{source['data']}"


def _join_texts(content: object, place: str) -> str:
    """Return the text of a text, or of a list of blocks of text.

    Raises:
        RequestError: 400, it is something else.
    """
    if isinstance(content, str):
        return content
    texts = [
        each.get("text") if isinstance(each, dict) else None
        for each in (content if isinstance(content, list) else [None])
    ]
    if not all(isinstance(each, str) for each in texts):
        raise _refuse(place, "must be text to be read by a probe")
    return "\n".join(map(str, texts))


def _refuse(place: str, said: str) -> RequestError:
    return RequestError(f"{place}: {said}", param=place)
