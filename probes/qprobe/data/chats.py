"""Chat messages, as OpenAI's API takes them."""

from typing import Any

from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["flatten", "read_chat", "read_reply", "user"]

Json = dict[str, Any]


def user(content: str) -> Json:
    """Return the message of a user."""
    return {"role": "user", "content": content}


def read_chat(field: str, value: object) -> list[Json]:
    """Return messages, checked, without the fields that are null: a table has all of them.

    A content is text, a list of parts of text, or null beside ``tool_calls``.

    Raises:
        RowError: It is no list of messages, or one of them is not valid.
    """
    if not isinstance(value, list) or not value:
        raise RowError(field, f"must be a non-empty list of messages, got {show(value)}")
    return [_read_message(f"{field}[{index}]", each) for index, each in enumerate(value)]


def flatten(chat: list[Json]) -> list[Json]:
    """Return messages whose contents are text and not parts of it."""
    made = []
    for message in chat:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content)
        made.append({**message, "content": content})
    return made


def read_reply(field: str, message: Json) -> str:
    """Return the text of the message that answers a chat.

    Raises:
        RowError: It is not of the role ``assistant``, or calls a tool and says nothing.
    """
    if message["role"] != "assistant":
        raise RowError(f"{field}.role", f"must be 'assistant', got {message['role']!r}")
    content = message.get("content")
    if content is None:
        raise RowError(f"{field}.content", "must be text, got null beside tool_calls")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _read_message(field: str, message: object) -> Json:
    if not isinstance(message, dict):
        raise RowError(field, f"must be an object, got {show(message)}")
    if "role" not in message:
        raise RowError(f"{field}.role", f"is missing from {show(message)}")
    if not read_text(f"{field}.role", message["role"]):
        raise RowError(f"{field}.role", "must not be empty, got ''")
    made: Json = _drop_null(message)
    calls = made.get("tool_calls") or []
    _check_calls(f"{field}.tool_calls", calls)
    if "content" not in made and not calls:
        if "content" not in message:
            raise RowError(f"{field}.content", f"is missing from {show(message)}")
        raise RowError(f"{field}.content", "must be text or a list of parts, got None")
    if "content" in made and not isinstance(made["content"], list):
        read_text(f"{field}.content", made["content"])
    elif "content" in made:
        for index, part in enumerate(made["content"]):
            _check_part(f"{field}.content[{index}]", part)
    return {"content": None, **made} if calls else made


def _check_part(field: str, part: object) -> None:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise RowError(field, f"must be a part of type 'text', got {show(part)}")
    read_text(f"{field}.text", part.get("text"))


def _check_calls(field: str, calls: object) -> None:
    if not isinstance(calls, list):
        raise RowError(field, f"must be a list, got {show(calls)}")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise RowError(f"{field}[{index}].function", f"must be an object, got {show(function)}")
        read_text(f"{field}[{index}].function.name", function.get("name"))


def _drop_null(value: Any) -> Any:  # noqa: ANN401 JSON of any kind
    if isinstance(value, dict):
        return {name: _drop_null(each) for name, each in value.items() if each is not None}
    return [_drop_null(each) for each in value] if isinstance(value, list) else value
