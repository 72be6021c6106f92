"""Where an upstream is, and where a request's path is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httpx

from qprobe_server.errors import RequestError, StartupError

__all__ = ["Address", "read_address", "read_upstreams"]

_API = b"/v1"


@dataclass(frozen=True)
class Address:
    """The address that clients of an upstream are given as their base URL.

    Attributes:
        url: Its path usually ends in ``/v1``; a query is sent with every request.
    """

    url: httpx.URL

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.url.scheme}://{self.url.netloc.decode()}"

    def locate(self, raw_path: bytes, query: bytes) -> httpx.URL:
        """Return where a path of this server is there.

        ``/v1/x`` is ``x`` below the address. Other paths are beside its ``/v1``, if it has one.

        Raises:
            RequestError: 404, it would be elsewhere on that host, or has an empty part: many
                servers take ``//v1/x`` for ``/v1/x``, whose rules it would not be held to.
        """
        own_path, _, own_query = self.url.raw_path.partition(b"?")
        base = own_path.rstrip(b"/")
        parts = unquote_to_bytes(raw_path).split(b"/")
        if any(part in (b".", b"..") for part in parts) or b"" in parts[1:-1]:
            raise _unknown()
        if raw_path == _API or raw_path.startswith(_API + b"/"):
            path = base + raw_path.removeprefix(_API)
        elif base.endswith(_API):
            path = base.removesuffix(_API) + raw_path
        else:
            raise _unknown()
        queries = b"&".join(each for each in (own_query, query) if each)
        return self.url.copy_with(raw_path=(path or b"/") + (b"?" + queries if queries else b""))


def read_address(flag: str, text: str) -> Address:
    """Read an address of a command line.

    Raises:
        StartupError: It is no http(s) address, or holds a password.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise StartupError(f"{flag} {text!r}: {error}") from error
    if url.userinfo:
        raise StartupError(f"{flag}: must not hold a password; give the key in the environment")
    if url.scheme not in ("http", "https") or not url.host or url.fragment:
        raise StartupError(
            f"{flag} {text!r}: must be an address such as https://api.example.com/v1"
        )
    return Address(url)


def read_upstreams(given: Sequence[str]) -> dict[str | None, Address]:
    """Return the upstreams of the ``--upstream`` flags by the model's name, in their order.

    Returns:
        None as a name takes the models that no other one has.

    Raises:
        StartupError: One is neither URL nor NAME=URL, or has the name of another.
    """
    upstreams: dict[str | None, Address] = {}
    for each in given:
        name, equals, text = each.partition("=")
        # The address may have a query.
        is_named = bool(equals) and "://" not in name
        key = name if is_named else None
        if key == "":
            raise StartupError(f"--upstream {each!r}: must be URL or NAME=URL")
        if key in upstreams:
            said = "an address without a name" if key is None else f"the name {key!r}"
            raise StartupError(f"--upstream {each!r}: {said} is given twice")
        upstreams[key] = read_address("--upstream", text if is_named else each)
    return upstreams


def _unknown() -> RequestError:
    return RequestError("path: is not served here", param="path", status=404)
