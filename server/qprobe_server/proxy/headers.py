"""Which headers pass between a client and an upstream, and how its key is sent."""

from collections.abc import Iterable

from qprobe_server.errors import StartupError

__all__ = ["Header", "make_key_header", "to_client", "to_upstream"]

Header = tuple[bytes, bytes]

_AUTHORIZATION = "authorization"

# RFC 9110, section 7.6.1: of one connection only.
_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
# Of this server's own address and connection.
_OF_THE_REQUEST = frozenset((b"host", b"expect"))
# What the client proves itself with, which is no business of the upstream's.
_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"cookie"))
# uvicorn's own are left out instead of these; cookies are those of the proxy, not of its clients.
_OF_THE_REPLY = frozenset((b"set-cookie",))


def make_key_header(key: str, *, name: str | None = None) -> Header:
    """Return the header that carries a key.

    Without a name it is ``authorization``, and the key a bearer token.

    Raises:
        StartupError: The key has a character that no header can have; it is not quoted.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise StartupError("a key in the environment has a character that no key can have")
    name = (name or _AUTHORIZATION).lower()
    return name.encode(), (f"Bearer {key}" if name == _AUTHORIZATION else key).encode()


def to_upstream(headers: Iterable[Header], *, passes_credentials: bool) -> list[Header]:
    """Return the headers of a request that go on to an upstream.

    Args:
        headers: Names in lower case.
        passes_credentials: Whether the client's own keys go on too.
    """
    dropped = _OF_THE_REQUEST if passes_credentials else _OF_THE_REQUEST | _CREDENTIALS
    return _pass(headers, dropped)


def to_client(headers: Iterable[Header]) -> list[Header]:
    """Return the headers of an upstream's reply that go on to the client, in lower case."""
    lower = [(name.lower(), value) for name, value in headers]
    # Which pages may read a reply is a matter of this server's own, as its owner's key pays for it.
    of_pages = {name for name, _ in lower if name.startswith(b"access-control-")}
    return _pass(lower, _OF_THE_REPLY | of_pages)


def _pass(headers: Iterable[Header], dropped: frozenset[bytes]) -> list[Header]:
    headers = list(headers)
    # ``Connection`` may name more of its kind.
    named = {
        each.strip().lower()
        for name, value in headers
        if name == b"connection"
        for each in value.split(b",")
    }
    # uvicorn keeps the white space after a value, which httpx sends nobody.
    return [
        (name, value.strip(b" \t"))
        for name, value in headers
        if name not in _HOP_BY_HOP and name not in dropped and name not in named
    ]
