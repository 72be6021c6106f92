"""One line of JSON for each request, and the id by which a request is found again.

The outermost ASGI middleware, so that refused requests are in it too. It writes where a request
went and what became of it; no text of a request, no query and no header but its id.
"""

import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessLogMiddleware", "settle_request_id", "start_access_log"]

# What a request's own id may be: else it could break a line or a header.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_HEADER = "x-request-id"

_logger = logging.getLogger("qprobe_server.access")


class AccessLogMiddleware:
    """Gives every request an id, and notes how it ended.

    The id is the request's ``X-Request-Id``, or a new one, unless ``settle_request_id`` finds
    another; the reply carries it. Whoever serves the request may add to ``scope["qprobe_log"]``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.monotonic()
        headers = MutableHeaders(raw=list(scope["headers"]))
        given = headers.get(_ID_HEADER)
        noted: dict[str, Any] = {"request_id": given}
        if given is None or not _ID.fullmatch(given):
            noted["request_id"] = uuid.uuid4().hex
            if given is not None:
                headers[_ID_HEADER] = noted["request_id"]
        scope = {**scope, "headers": headers.raw, "qprobe_log": noted}
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if _ID_HEADER not in Headers(raw=message["headers"]):
                    # A list of its own: the app may hold the same headers for several replies.
                    raw = [*message["headers"], (_ID_HEADER.encode(), noted["request_id"].encode())]
                    message = {**message, "headers": raw}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if _logger.isEnabledFor(logging.INFO):
                fields = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": noted["request_id"],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_s": round(time.monotonic() - begun_s, 4),
                    **noted,
                }
                _logger.info("%s", json.dumps(fields))


def settle_request_id(scope: Scope, headers: MutableHeaders, of_body: object) -> None:
    """Have vLLM take the log's id, which it makes part of its own (``chatcmpl-ID``).

    vLLM's order is kept (``BaseServing._base_request_id``, entrypoints/serve/engine/serving.py):
    the header's id, else the body's ``request_id``, which is then the log's too, else a new one.

    Args:
        scope: Of the request.
        headers: Its headers, for vLLM.
        of_body: What the body has for ``request_id``; None if it has none.
    """
    noted = scope.get("qprobe_log")
    if noted is None or _ID_HEADER in headers:
        return
    if of_body is None:
        headers[_ID_HEADER] = noted["request_id"]
    elif isinstance(of_body, str) and _ID.fullmatch(of_body):
        noted["request_id"] = of_body


def start_access_log() -> None:
    """Write the lines to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
