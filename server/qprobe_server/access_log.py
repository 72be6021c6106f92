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

__all__ = ["AccessLogMiddleware", "start_access_log"]

# What a request's own id may be: else it could break a line or a header.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_HEADER = "x-request-id"

_logger = logging.getLogger("qprobe_server.access")


class AccessLogMiddleware:
    """Gives every request an id, and notes how it ended.

    The id is the request's ``X-Request-Id``, or a new one. vLLM makes it part of its own ids
    (``chatcmpl-ID``), and the reply carries it. Whoever serves the request may add to
    ``scope["qprobe_log"]``.
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
        request_id = headers.get(_ID_HEADER, "")
        if not _ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
            headers[_ID_HEADER] = request_id
        noted: dict[str, Any] = {}
        scope = {**scope, "headers": headers.raw, "qprobe_log": noted}
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if _ID_HEADER not in Headers(raw=message["headers"]):
                    # A list of its own: the app may hold the same headers for several replies.
                    raw = [*message["headers"], (_ID_HEADER.encode(), request_id.encode())]
                    message = {**message, "headers": raw}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if _logger.isEnabledFor(logging.INFO):
                fields = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_s": round(time.monotonic() - begun_s, 4),
                    **noted,
                }
                _logger.info("%s", json.dumps(fields))


def start_access_log() -> None:
    """Write the lines to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
