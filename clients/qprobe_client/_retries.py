"""When a call is made again, and after what pause. Does no I/O.

A call that the server may have begun is made again only if to make it twice does no harm. 429 and
503 say that it was not begun.
"""

import email.utils
import random
import time

import httpx

from qprobe_client._calls import Call

__all__ = ["Retries"]

# Doubled with every retry, and cut by chance to its half at most, so that many clients spread out.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
# A server that wants us to stay away for longer is left alone: the caller gets the error.
LONGEST_RETRY_AFTER_S = 60.0

_NOT_BEGUN = (429, 503)
_FAILED = (500, 502, 504)


class Retries:
    """Counts the retries of one call."""

    def __init__(self, call: Call, *, max_retries: int) -> None:
        self._is_idempotent = call.is_idempotent
        self._left = max_retries
        self._made = 0

    def after_failure(self, error: httpx.HTTPError) -> float | None:
        """Return the pause before the next try, in seconds, or None to give up."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return self._pause()
        broke = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
        return self._pause() if self._is_idempotent and isinstance(error, broke) else None

    def after_reply(self, status: int, headers: httpx.Headers) -> float | None:
        """Return the pause before the next try, in seconds, or None to take the reply."""
        if status in _NOT_BEGUN or (self._is_idempotent and status in _FAILED):
            asked_s = _read_retry_after(headers.get("retry-after", ""))
            return self._pause(at_least_s=asked_s) if asked_s <= LONGEST_RETRY_AFTER_S else None
        return None

    def _pause(self, *, at_least_s: float = 0.0) -> float | None:
        if self._left <= 0:
            return None
        self._left -= 1
        pause_s = min(FIRST_PAUSE_S * 2.0**self._made, LONGEST_PAUSE_S) * random.uniform(0.5, 1)
        self._made += 1
        return max(pause_s, at_least_s)


def _read_retry_after(value: str) -> float:
    """Read seconds or a date, as RFC 9110, 10.2.3, has them; 0 if it is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0
