"""The reward ``http``: a service of the user's own says what an answer is worth.

Stands here and not in ``qprobe``, which knows no HTTP. Neither rows nor answers nor what the
service says get into errors or logs.
"""

import json
import math
import threading
import time
from typing import Any, Self

import httpx

from qprobe.errors import RewardError

__all__ = ["HttpReward", "is_url"]

Json = dict[str, Any]

_MAX_REPLY_BYTES = 64 << 10
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)


def is_url(reward: str | None) -> bool:
    """Whether a reward is a service."""
    return reward is not None and reward.startswith(("http://", "https://"))


class _TransientError(Exception):
    """Worth another try; the message says what happened."""


class HttpReward:
    """Posts ``{"row": fields, "completion": text}``; the reply is ``{"reward": number}``.

    A request that cannot connect, times out, loses its connection, or is answered with 429 or 5xx
    is made again after a pause that doubles, up to half a minute; any other answer is final.
    Redirects are not followed.

    Args:
        url: Of the service, http or https.
        timeout_s: For connecting and for every read and write, > 0.
        max_retries: Tries after the first, >= 0.
        max_concurrent: Requests under way at once, >= 1; more callers wait.
        headers: Sent along, such as an ``Authorization``.
        transport: Stands in for the network in tests.
        first_pause_s: Before the first repetition, >= 0.

    Raises:
        RewardError: The URL or a number is not valid.
    """

    name = "http"

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        max_concurrent: int = 8,
        headers: dict[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise RewardError(f"reward 'http': {url!r} is no URL: {error}") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise RewardError(f"reward 'http': must be an http or https URL, got {url!r}")
        for setting, value, least in (
            ("timeout_s", timeout_s, 1e-3),
            ("max_retries", max_retries, 0),
            ("max_concurrent", max_concurrent, 1),
            ("first_pause_s", first_pause_s, 0),
        ):
            if not least <= value < math.inf:
                raise RewardError(f"reward 'http': {setting} must be >= {least}, got {value!r}")
        self._max_retries = max_retries
        self._first_pause_s = first_pause_s
        self._places = threading.BoundedSemaphore(max_concurrent)
        self._client = httpx.Client(
            timeout=timeout_s,
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=max_concurrent),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, fields: Json) -> None:
        """Accept every row: the service knows what it needs."""

    def __call__(self, fields: Json, completion: str) -> float:
        """Ask the service. Blocks; may be called from several threads.

        Raises:
            RewardError: It gave no finite number, also not when asked again.
        """
        body = json.dumps({"row": fields, "completion": completion}).encode()
        for attempt in range(self._max_retries + 1):
            if attempt:
                time.sleep(min(self._first_pause_s * 2 ** (attempt - 1), _MAX_PAUSE_S))
            try:
                with self._places:
                    return self._ask(body)
            except _TransientError as error:
                last = error
        tries = self._max_retries + 1
        raise RewardError(f"reward 'http': {last}, {tries} times") from last

    def _ask(self, body: bytes) -> float:
        headers = {"content-type": "application/json"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as reply:
                status = reply.status_code
                if status == 429 or status >= 500:
                    raise _TransientError(f"the service answered with status {status}")
                if status != 200:
                    raise RewardError(f"reward 'http': the service answered with status {status}")
                data = _read(reply)
        except _TRANSIENT as error:
            raise _TransientError(
                f"the service could not be asked: {type(error).__name__}"
            ) from error
        except httpx.HTTPError as error:
            raise RewardError(f"reward 'http': {type(error).__name__}") from error
        return _parse(data)


def _read(reply: httpx.Response) -> bytes:
    data = b""
    for chunk in reply.iter_bytes():
        data += chunk
        if len(data) > _MAX_REPLY_BYTES:
            raise RewardError(f"reward 'http': the reply is longer than {_MAX_REPLY_BYTES} bytes")
    return data


def _parse(data: bytes) -> float:
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        raise RewardError("reward 'http': the reply is not JSON") from None  # it may quote the user
    value = reply.get("reward") if isinstance(reply, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RewardError("reward 'http': the reply must be {\"reward\": number}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"reward 'http': the reward must be finite, got {number!r}")
    return number
