"""The body of a request that we read: not too large, and where it is JSON an object.

Reading one holds the event loop, as it does once more when FastAPI reads it for vLLM, and a thread
would not help: the parser keeps the interpreter to itself. A MiB takes 2 ms where it is text and 10
to 20 ms where it is token ids, and half as much to be written anew.
"""

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from qprobe_server.errors import RequestError

__all__ = ["PARSED", "is_json", "may_be_json", "parse", "read", "read_coding", "replay", "write"]

# Where a request's scope has the fields of its body, for what would have to parse it again.
PARSED = "qprobe_body"

_JSON = "application/json"
# What curl, fetch and others send where nobody has told them a type.
_UNTOLD = ("", "application/x-www-form-urlencoded", "text/plain")


def is_json(scope: Scope) -> bool:
    """Return whether a body says that it is JSON."""
    return _read_type(scope) == _JSON


def may_be_json(scope: Scope) -> bool:
    """Return whether a body is JSON as far as its type tells, which may be none of the client's."""
    return _read_type(scope) in (_JSON, *_UNTOLD)


def read_coding(scope: Scope) -> str | None:
    """Return how a body is compressed, None if it is not; nobody here unpacks it."""
    coding = Headers(scope=scope).get("content-encoding", "").strip().lower()
    return None if coding in ("", "identity") else coding


def _read_type(scope: Scope) -> str:
    content_type = Headers(scope=scope).get("content-type", "")
    return content_type.split(";", maxsplit=1)[0].strip().lower()


async def read(scope: Scope, receive: Receive, *, max_mib: int) -> bytes | None:
    """Read a body, as far as it is allowed to go.

    Args:
        scope: Of the request.
        receive: Gives the body.
        max_mib: The most MiB that it may have, >= 1.

    Returns:
        None if the client left before it had sent all of it.

    Raises:
        RequestError: 413, it is or says that it is too large.
    """
    max_bytes = max_mib << 20
    # uvicorn has checked that it is a number
    size = int(Headers(scope=scope).get("content-length", "0"))
    chunks: list[bytes] = []
    if size <= max_bytes:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > max_bytes:
                break
            if not message.get("more_body", False):
                return b"".join(chunks)
    raise RequestError(
        f"body: must have at most {max_bytes} bytes (--max-body-mib {max_mib}), got {size} or more",
        param="body",
        status=413,
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
