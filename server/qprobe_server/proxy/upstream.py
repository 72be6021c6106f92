"""One server behind the proxy. Asks it for candidates within bounds. Knows no probes."""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from qprobe_server.errors import StartupError, UpstreamError
from qprobe_server.proxy.address import Address
from qprobe_server.proxy.headers import Header, to_upstream
from qprobe_server.proxy.metrics import Meter, SentRequest, UpstreamMetrics
from qprobe_server.retry_after import read_pause

__all__ = ["Bounds", "Reply", "Upstream", "check_redirect", "explain"]

_CERTIFICATES = "SSL_CERT_FILE"
_CONNECT_S = 10.0
# Less than the least after which usual servers close a connection: uvicorn's, and so vLLM's, is 5.
_MAX_IDLE_S = 3.0
# As httpx says that a connection is made, and that one was closed before there was a reply.
_CONNECTING = "connection.connect_tcp.started"
_CLOSED = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
# Tries of a request whose failure does not say when to come again, and of one that does.
_MAX_TRIES = 4
_MAX_TOLD_TRIES = 12
# The least pause after the first try; it doubles so many times, whatever the upstream says.
_FIRST_PAUSE_S = 0.5
_MAX_DOUBLINGS = 5
# So that candidates that were refused together do not come together again.
_JITTER = 0.25
_REDIRECTS = (301, 302, 303, 307, 308)

logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an upstream is given.

    Attributes:
        max_reply_mib: The most MiB that the reply of one candidate may have, >= 1.
        concurrency: Candidates that are asked for at a time, >= 1.
        deadline_s: Seconds for all candidates of a request, retries included, > 0.
    """

    max_reply_mib: int = 16
    concurrency: int = 64
    deadline_s: float = 600.0


@dataclass(frozen=True)
class Reply:
    """A reply with status 200, whole.

    Attributes:
        is_stream: Whether it is a stream of events.
        body: Its bytes.
    """

    is_stream: bool
    body: bytes


class Upstream:
    """One upstream, with its connections.

    Args:
        address: Where it is.
        bounds: For what is sampled there.
        key: The header that carries its key, or None.
        passes_credentials: Whether it gets its clients' own.
        meter: Counts what it is sent; None: nobody asks.

    Raises:
        StartupError: The environment says of connections what cannot be.
    """

    def __init__(
        self,
        address: Address,
        bounds: Bounds,
        *,
        key: Header | None = None,
        passes_credentials: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self.address = address
        self.bounds = bounds
        self.meter = meter or UpstreamMetrics(None).meter(None)
        self._key = key
        self._passes_credentials = passes_credentials
        self._slots = asyncio.Semaphore(bounds.concurrency)
        # Requests are made without it, so that nothing of its own is in them, cookies least of all.
        self.client = _open_client()

    async def close(self) -> None:
        """Close its connections."""
        await self.client.aclose()

    def headers(self, headers: Sequence[Header]) -> list[Header]:
        """Return what it gets of a client's headers, and its key."""
        passed = to_upstream(headers, passes_credentials=self._passes_credentials)
        if self._key is None:
            return passed
        # One of the key's name beside it would be another key, and some servers take the first.
        return [*(each for each in passed if each[0] != self._key[0]), self._key]

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the reply as far as its headers, to be closed.

        Servers close connections that idle, at times just when a request is sent on one: it is
        sent once more then, if its body is at hand. On a new connection nobody knows what became
        of it.

        Raises:
            UpstreamError: There is no reply.
        """
        is_new = False

        async def note(event: str, _: object) -> None:
            nonlocal is_new
            is_new = is_new or event == _CONNECTING
            # The first event tells; of the others, a dozen, httpcore then says nothing.
            request.extensions.pop("trace", None)

        request.extensions["trace"] = note
        try:
            try:
                return await self.client.send(request, stream=True)
            except _CLOSED:
                if is_new or not isinstance(request.stream, httpx.ByteStream):
                    raise
                return await self.client.send(request, stream=True)
        except httpx.LocalProtocolError as error:
            raise UpstreamError("it cannot be sent such a request") from error
        except httpx.HTTPError as error:
            raise UpstreamError("it cannot be reached", may_pass=True) from error

    async def ask(self, make: Callable[[], httpx.Request], *, deadline_s: float) -> Reply:
        """Ask for a candidate; again, where that may help and there is time.

        Args:
            make: Makes the request, for each try anew: thousands may wait for their turn, and what
                waits should have no body.
            deadline_s: On the event loop's clock.

        Raises:
            UpstreamError: There is no usable reply.
        """
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            tries += 1
            try:
                async with asyncio.timeout_at(deadline_s), self._slots:
                    with self.meter.watch(deadline_s=deadline_s) as sent:
                        return await self._ask_once(make(), sent)
            except TimeoutError:
                raise UpstreamError(
                    "no answer in time", status=HTTPStatus.GATEWAY_TIMEOUT
                ) from None
            except UpstreamError as error:
                pause_s = _find_pause_s(error, tries)
                if pause_s is None or loop.time() + pause_s >= deadline_s:
                    raise
            await asyncio.sleep(pause_s)
            self.meter.count_retry()

    async def _ask_once(self, request: httpx.Request, sent: SentRequest) -> Reply:
        response = await self.send(request)
        sent.status = response.status_code
        try:
            check_redirect(response)
            if response.status_code != HTTPStatus.OK:
                raise await self._read_error(response, sent)
            body = await self._read(response, sent)
        except httpx.HTTPError as error:
            raise UpstreamError("the connection was lost") from error
        finally:
            await response.aclose()
        return Reply(_find_type(response).startswith("text/event-stream"), body)

    async def _read_error(self, response: httpx.Response, sent: SentRequest) -> UpstreamError:
        """Return what another status than 200 says, also where its body cannot be read."""
        status = response.status_code
        own = None
        if response.is_error:
            with suppress(UpstreamError, httpx.HTTPError):
                own = (_find_type(response), await self._read(response, sent))
        return UpstreamError(
            f"status {status}",
            status=status if response.is_error else HTTPStatus.BAD_GATEWAY,
            own=own,
            retry_after_s=read_pause(response.headers),
            may_pass=status == HTTPStatus.TOO_MANY_REQUESTS or response.is_server_error,
        )

    async def _read(self, response: httpx.Response, sent: SentRequest) -> bytes:
        """Read a reply as far as it is allowed to go.

        Raises:
            UpstreamError: It is too large, or compressed though nobody asked for that.
        """
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UpstreamError("a compressed reply")
        chunks, size = [], 0
        async for chunk in response.aiter_raw():
            sent.note_bytes()
            size += len(chunk)
            if size > self.bounds.max_reply_mib << 20:
                raise UpstreamError(f"a reply of more than {self.bounds.max_reply_mib} MiB")
            chunks.append(chunk)
        return b"".join(chunks)


def _open_client() -> httpx.AsyncClient:
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=256, keepalive_expiry=_MAX_IDLE_S
    )
    try:
        return httpx.AsyncClient(timeout=httpx.Timeout(None, connect=_CONNECT_S), limits=limits)
    except OSError as error:
        given = os.environ.get(_CERTIFICATES, "")
        said = error.strerror or "it holds no certificates"
        raise StartupError(f"{_CERTIFICATES} {given!r}: {said}") from error
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        # Not what it says: the address may have a password.
        raise StartupError(
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is no address of a proxy for HTTP"
        ) from error


def _find_type(response: httpx.Response) -> str:
    found: str = response.headers.get("content-type", "")
    return found


def check_redirect(response: httpx.Response) -> None:
    """Check that an upstream answers itself: another host would get the request, and the key.

    Raises:
        UpstreamError: It sends the client elsewhere.
    """
    if response.status_code in _REDIRECTS and "location" in response.headers:
        raise UpstreamError("a redirect, which is not followed")


def explain(error: BaseException) -> str:
    """Return what an error says, with why a connection failed: clients are not told that."""
    cause = error.__cause__
    # Of httpx's others the text may quote a header.
    while cause is not None and not isinstance(cause, httpx.ConnectError):
        cause = cause.__cause__
    return str(error) if cause is None else f"{error} ({cause})"


def _find_pause_s(error: UpstreamError, tries: int) -> float | None:
    """Return after how long another try makes sense; None if it does not."""
    told_s = error.retry_after_s
    if not error.may_pass or tries >= (_MAX_TRIES if told_s is None else _MAX_TOLD_TRIES):
        return None
    least_s = _FIRST_PAUSE_S * 2.0 ** min(tries - 1, _MAX_DOUBLINGS)
    # "At once" is told too: by 0, or by a date that has passed.
    return max(least_s, told_s or 0.0) * (1 + _JITTER * random.random())
