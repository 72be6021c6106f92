"""Chats and answers as plain text, for what reads no chats."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qprobe_server.errors import RequestError
from qprobe_server.proxy.reader import Prompt, Written

__all__ = ["check_text_only", "fill", "mend", "write_answer", "write_content", "write_prompt"]

Message = Mapping[str, Any]

_PLACE = re.compile(r"\{(prompt|completion)\}")


def check_text_only(prompt: Prompt) -> None:
    """Check that a prompt is nothing but text.

    Raises:
        RequestError: 400, a message has another content, or a part of one; it is named.
    """
    for number, message in enumerate(prompt.messages or ()):
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            where = f"messages.{number}.content"
            raise RequestError(f"{where}: must be a text or a list", param=where)
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else None
                where = f"messages.{number}.content.{place}"
                raise RequestError(
                    f"{where}: the reader of the answers reads text only, got {kind!r}",
                    param=where,
                )


def fill(template: str, *, prompt: str, completion: str) -> str:
    """Return a template with the texts in their places, ``{prompt}`` and ``{completion}``."""
    texts = {"prompt": prompt, "completion": completion}
    return _PLACE.sub(lambda place: texts[place[1]], template)


def write_prompt(prompt: Prompt) -> str:
    """Return a prompt as text, up to where its answer begins.

    A chat is ``role: content``, with an empty line between messages and its tools in front.
    """
    if prompt.messages is None:
        return prompt.text or ""
    parts = [
        *(["tools: " + _dump(list(prompt.tools))] if prompt.tools else []),
        *(f"{each['role']}: {_write_message(each)}" for each in prompt.messages),
        *([] if prompt.continues else ["assistant: "]),
    ]
    return "\n\n".join(parts)


def write_answer(written: Written) -> str:
    """Return an answer as text: its content or refusal, and a line of JSON for each tool call.

    Reasoning is left out. Takes any message, as a model and its server may write anything.
    """
    message = written.message or {}
    refusal = message.get("refusal")
    content = written.text or (refusal if isinstance(refusal, str) else None)
    return _write_message({**message, "content": content})


def write_content(message: Message) -> str:
    """Return the content of a message, which may be parts of text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def mend(value: Any) -> Any:  # noqa: ANN401 JSON of any kind
    """Return JSON with its surrogates in pairs, and U+FFFD for each that is alone.

    JSON can say half a pair, which nothing else can; a stream may be cut between the two.
    """
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case dict():
            return {mend(name): mend(each) for name, each in value.items()}
        case list():
            return [mend(each) for each in value]
    return value


def _write_message(message: Message) -> str:
    content = write_content(message)
    calls = message.get("tool_calls") or ()
    calls = calls if isinstance(calls, list | tuple) else [calls]
    return "\n".join([*([content] if content else []), *(_write_call(each) for each in calls)])


def _write_call(call: object) -> str:
    """Return a call as JSON: of a function its name and arguments, of another all of it."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        return _dump(call)
    arguments: Any = function.get("arguments")
    with suppress(TypeError, ValueError, RecursionError):  # a model may write anything
        arguments = json.loads(arguments)
    return _dump({"name": function["name"], "arguments": arguments})


def _dump(value: object) -> str:
    text: str = mend(json.dumps(value, ensure_ascii=False))
    return text
