"""Prometheus metrics of a proxy's upstreams, by the names that the command line gives them.

Labels are bounded: nothing that a client or an upstream says becomes one.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["LeftError", "Meter", "SentRequest", "UpstreamMetrics"]

# By status: below 400, 429, others of 4xx, 5xx. Broken: no whole reply, or one that is not usable.
Outcome = Literal["ok", "busy", "refused", "failed", "broken", "timeout", "cancelled"]

# Of the upstream that takes all models without one of their own; an empty label would be none.
_NAMELESS = "*"


class LeftError(Exception):
    """The client left before it had sent its request: there is nobody to answer."""


class UpstreamMetrics:
    """What is sent to upstreams, and what comes of it.

    Args:
        registry: The one behind ``/metrics``; None: nobody asks.
    """

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._requests = Counter(
            "qprobe_upstream_requests",
            "Requests sent to an upstream, each try counted",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "qprobe_upstream_retries",
            "Requests for a candidate that were sent again",
            ["upstream"],
            registry=registry,
        )
        self._first_byte = Histogram(
            "qprobe_upstream_first_byte_seconds",
            "From a request to the first byte of its reply's body, of replies below 400; what is "
            "no stream mostly comes whole",
            ["upstream"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )

    def meter(self, name: str | None) -> "Meter":
        """Return what counts for one upstream; None is the one without a name."""
        label = _NAMELESS if name is None else name
        return Meter(
            {each: self._requests.labels(label, each) for each in get_args(Outcome)},
            self._retries.labels(label),
            self._first_byte.labels(label),
        )


class SentRequest:
    """A request that is under way.

    Args:
        first_byte: Gets the seconds until the first byte.

    Attributes:
        status: Of the reply, once there is one.
    """

    def __init__(self, first_byte: Histogram) -> None:
        self.status: int | None = None
        self._first_byte: Histogram | None = first_byte
        self._begun_s = time.monotonic()

    def note_bytes(self) -> None:
        """Note that some of the body is there; may be called for each piece."""
        if self._first_byte is None:
            return
        if _judge(self.status) == "ok":
            self._first_byte.observe(time.monotonic() - self._begun_s)
        self._first_byte = None


class Meter:
    """Counts what is sent to one upstream.

    Args:
        requests: By their outcomes.
        retries: Tries after the first.
        first_byte: Seconds.
    """

    def __init__(
        self, requests: dict[Outcome, Counter], retries: Counter, first_byte: Histogram
    ) -> None:
        self._requests = requests
        self._retries = retries
        self._first_byte = first_byte

    def count_retry(self) -> None:
        """Count a try after the first."""
        self._retries.inc()

    @contextmanager
    def watch(self, *, deadline_s: float = math.inf) -> Iterator[SentRequest]:
        """Count a request by how the block ends, in which it is sent and its reply is read.

        Args:
            deadline_s: On the event loop's clock: what is cancelled from then on is late.
        """
        sent = SentRequest(self._first_byte)
        outcome: Outcome | None = None
        try:
            yield sent
            outcome = _judge(sent.status)
        except (asyncio.CancelledError, LeftError):
            is_late = asyncio.get_running_loop().time() >= deadline_s
            outcome = "timeout" if is_late else "cancelled"
            raise
        finally:
            # Where something else has ended it, a reply of a good status is not a usable one.
            self._requests[outcome or _judge(sent.status, good="broken")].inc()


def _judge(status: int | None, *, good: Outcome = "ok") -> Outcome:
    if status is None:
        return "broken"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "busy"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "failed"
    return "refused" if status >= HTTPStatus.BAD_REQUEST else good
