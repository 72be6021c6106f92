"""The body of a request that we read: JSON, an object, and not too large."""

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from qprobe_server.errors import RequestError

__all__ = ["MAX_BYTES", "is_json_post", "parse", "read", "replay", "write"]

# What Anthropic takes, images included. So many hold the event loop for 0.03 s to be read, and once
# more to be written anew.
MAX_BYTES = 32 << 20


def is_json_post(scope: Scope) -> bool:
    """Return whether vLLM reads the request as JSON."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    content_type = Headers(scope=scope).get("content-type", "")
    return content_type.split(";", maxsplit=1)[0].strip().lower() == "application/json"


async def read(scope: Scope, receive: Receive) -> bytes | None:
    """Read a body, as far as it is allowed to go.

    Returns:
        None if the client left before it had sent all of it.

    Raises:
        RequestError: 413, it is or says that it is too large.
    """
    size = int(
        Headers(scope=scope).get("content-length", "0")
    )  # uvicorn has checked that it is one
    chunks: list[bytes] = []
    if size <= MAX_BYTES:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > MAX_BYTES:
                break
            if not message.get("more_body", False):
                return b"".join(chunks)
    raise RequestError(
        f"body: must have at most {MAX_BYTES} bytes, got {size} or more", param="body", status=413
    )


def parse(raw: bytes) -> dict[str, Any]:
    """Return the fields of a body.

    Raises:
        RequestError: 400, it is no JSON object; the message quotes nothing of it.
    """
    try:
        body = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _refuse(f"must be UTF-8; {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise _refuse(f"must be JSON; {error.msg}: {where}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _refuse(f"must be JSON; {error}") from error
    except RecursionError as error:
        raise _refuse("is nested too deep") from error
    if not isinstance(body, dict):
        raise _refuse("must be a JSON object")
    return body


def write(body: dict[str, Any]) -> bytes:
    """Return fields as a body again.

    Raises:
        RequestError: 400, a text in it is no Unicode, or it is nested very deep.
    """
    try:
        return to_json(body, inf_nan_mode="constants")  # twice as fast as json.dumps
    except (PydanticSerializationError, ValueError) as error:
        raise _refuse("is nested too deep, or has half a surrogate pair") from error


def replay(raw: bytes, receive: Receive) -> Receive:
    """Return what gives a body to the app, and then whatever else the client sends."""
    pending: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _refuse(said: str) -> RequestError:
    return RequestError(f"body: {said}", param="body")
