"""One HTTP exchange, around its I/O: how a client is set up, and what its outcome means."""

import re
from typing import Any

import httpx

from qprobe_client._calls import Call
from qprobe_client._replies import make_error
from qprobe_client.errors import (
    APIError,
    ArgumentError,
    ReplyError,
    TransportError,
    TransportTimeoutError,
)

__all__ = ["http_options", "name_failure", "read_error", "read_json"]

_KEY = re.compile(r"[!-~]+")
_CONNECT_TIMEOUT_S = 5.0
# The server closes an idle connection after 5 s (vLLM's VLLM_HTTP_TIMEOUT_KEEP_ALIVE). We let go
# first: a POST that meets the closing could not be sent again.
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=3.0)


def http_options(*, base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of an httpx client.

    Raises:
        ArgumentError: The address or the key cannot be used.
    """
    # httpx would put a key that is no header into its error's message.
    if api_key is not None and not _KEY.fullmatch(api_key):
        raise ArgumentError("api_key: must be visible ASCII, without spaces or a line end")
    try:
        url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise ArgumentError(f"base_url: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ArgumentError("base_url: must begin with http:// or https:// and name a host")
    return {
        "base_url": url,
        "headers": {} if api_key is None else {"authorization": f"Bearer {api_key}"},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
        "limits": _LIMITS,
    }


def name_failure(call: Call, error: httpx.HTTPError) -> TransportError:
    """Make our error of httpx's."""
    is_timeout = isinstance(error, httpx.TimeoutException)
    kind = TransportTimeoutError if is_timeout else TransportError
    return kind(f"{call}: {type(error).__name__}: {error}")


def read_json(call: Call, reply: httpx.Response) -> Any:
    """Read a reply of a call that succeeded.

    Raises:
        ReplyError: It is not JSON.
    """
    try:
        return reply.json()
    except ValueError as error:
        raise ReplyError(f"{call}: the reply is not JSON: {type(error).__name__}") from error


def read_error(reply: httpx.Response) -> APIError:
    """Read a reply of a call that failed; its body must have been read."""
    try:
        content = reply.json()
    except ValueError:
        content = None
    return make_error(
        content,
        status=reply.status_code,
        reason=reply.reason_phrase or "the server gave no reason",
        request_id=reply.headers.get("x-request-id"),
    )
