"""The reward ``http``: a service of the user's own says what an answer is worth.

Stands here and not in ``qprobe``, which knows no HTTP. Neither rows nor answers nor what the
service says get into errors or logs.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import httpx

from qprobe.errors import RewardError
from qprobe_server.retry_after import read_pause

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
    """Worth another try; the message says what happened.

    Attributes:
        pause_s: What the service asks for before it, or None.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class HttpReward:
    """Posts ``{"row": fields, "completion": text}``; the reply is ``{"reward": number}``.

    With a batch size it is ``{"rows": [fields, ...], "completions": [text, ...]}`` and
    ``{"rewards": [number, ...]}``, also for one.

    A request that cannot connect, times out, loses its connection, or is answered with 429 or 5xx
    is made again after a pause that doubles, up to half a minute, or that the service asks for by
    ``Retry-After``; any other answer is final. Redirects are not followed.

    Attributes:
        batch_size: How many completions a request is for.

    Args:
        url: Of the service, http or https.
        timeout_s: For connecting and for every read and write, > 0.
        total_s: For a reward with all its tries and pauses, > 0.
        max_retries: Tries after the first, >= 0.
        max_concurrent: Requests under way at once, >= 1; more callers wait.
        batch_size: At most, >= 1; None asks for one at a time.
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
        total_s: float = 600.0,
        max_retries: int = 5,
        max_concurrent: int = 8,
        batch_size: int | None = None,
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
            ("total_s", total_s, 1e-3),
            ("batch_size", batch_size or 1, 1),
            ("max_retries", max_retries, 0),
            ("max_concurrent", max_concurrent, 1),
            ("first_pause_s", first_pause_s, 0),
        ):
            if not least <= value < math.inf:
                raise RewardError(f"reward 'http': {setting} must be >= {least}, got {value!r}")
        self.batch_size = batch_size or 1
        self._is_batched = batch_size is not None
        self._timeout_s, self._total_s = timeout_s, total_s
        self._closing = threading.Event()
        self._max_retries = max_retries
        self._first_pause_s = first_pause_s
        self._places = threading.BoundedSemaphore(max_concurrent)
        self._client = httpx.Client(
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=max_concurrent),
        )

    def close(self) -> None:
        """Close the connections; what waits for a pause to end fails at once."""
        self._closing.set()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, fields: Json) -> None:
        """Accept every row: the service knows what it needs."""

    def __call__(self, fields: Json, completion: str) -> float:
        """Ask the service for one completion; see ``rate``."""
        return self.rate([(fields, completion)])[0]

    def rate(self, batch: Sequence[tuple[Json, str]]) -> list[float]:
        """Ask the service. Blocks; may be called from several threads.

        Args:
            batch: Row and completion of each, ``batch_size`` of them at most.

        Raises:
            RewardError: It gave no finite numbers, also not when asked again.
        """
        if not self._is_batched:
            body = [{"row": fields, "completion": text} for fields, text in batch]
            return [_parse(self._post(each), None)[0] for each in body]
        rows, texts = zip(*batch, strict=True)
        return _parse(self._post({"rows": rows, "completions": texts}), len(batch))

    def _post(self, body: Json) -> bytes:
        content = json.dumps(body).encode()
        deadline = time.monotonic() + self._total_s
        for attempt in range(self._max_retries + 1):
            try:
                with self._places:
                    return self._ask(content, deadline)
            except _TransientError as error:
                last = error
            if attempt < self._max_retries:
                self._pause(attempt, last, deadline)
        tries = self._max_retries + 1
        raise RewardError(f"reward 'http': {last}, {tries} times") from last

    def _pause(self, attempt: int, last: _TransientError, deadline: float) -> None:
        pause_s = last.pause_s
        if pause_s is None:
            pause_s = min(self._first_pause_s * 2**attempt, _MAX_PAUSE_S)
        if time.monotonic() + pause_s > deadline:
            raise RewardError(
                f"reward 'http': {last}; the next try, in {pause_s:g} s, would be later than the "
                f"{self._total_s:g} s that a reward may take"
            ) from last
        if self._closing.wait(pause_s):
            raise RewardError("reward 'http': was closed")

    def _ask(self, content: bytes, deadline: float) -> bytes:
        headers = {"content-type": "application/json"}
        # One that is over is refused by httpx, as a timeout.
        timeout = max(1e-3, min(self._timeout_s, deadline - time.monotonic()))
        try:
            with self._client.stream(
                "POST", self._url, content=content, headers=headers, timeout=timeout
            ) as reply:
                _check_status(reply)
                return _read(reply, deadline)
        except _TRANSIENT as error:
            raise _TransientError(
                f"the service could not be asked: {type(error).__name__}"
            ) from error
        except httpx.HTTPError as error:
            raise RewardError(f"reward 'http': {type(error).__name__}") from error


def _check_status(reply: httpx.Response) -> None:
    status = reply.status_code
    if status == 429 or status >= 500:
        raise _TransientError(
            f"the service answered with status {status}", read_pause(reply.headers)
        )
    if 300 <= status < 400:
        raise RewardError(
            f"reward 'http': the service answered with status {status}, a redirect, which is not "
            "followed: give the address that it leads to"
        )
    if status != 200:
        raise RewardError(f"reward 'http': the service answered with status {status}")


def _read(reply: httpx.Response, deadline: float) -> bytes:
    data = b""
    for chunk in reply.iter_bytes():
        data += chunk
        if len(data) > _MAX_REPLY_BYTES:
            raise RewardError(f"reward 'http': the reply is longer than {_MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise RewardError("reward 'http': the reply did not end in the time for a reward")
    return data


def _parse(data: bytes, count: int | None) -> list[float]:
    """Return the rewards of a reply for so many; None: of one that is for a single completion."""
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        raise RewardError("reward 'http': the reply is not JSON") from None  # it may quote the user
    found = reply if isinstance(reply, dict) else {}
    if count is None:
        return [_read_number(found.get("reward"), '{"reward": number}')]
    values = found.get("rewards")
    form = f'{{"rewards": [number, ...]}} with {count} of them'
    if not isinstance(values, list) or len(values) != count:
        raise RewardError(f"reward 'http': the reply must be {form}")
    return [_read_number(each, form) for each in values]


def _read_number(value: object, form: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RewardError(f"reward 'http': the reply must be {form}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"reward 'http': the reward must be finite, got {number!r}")
    return number
