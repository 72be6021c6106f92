"""Keys that open routes: how they come with a request, and how they are compared."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping

__all__ = ["Keys", "find_bearer"]


class Keys:
    """Keys, of which only the digests are kept.

    Args:
        keys: Each of them opens.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(each) for each in keys]

    def holds(self, given: Iterable[str]) -> bool:
        """Return whether one of what was given is one of them; the time it takes tells nothing."""
        digests = [_digest(each) for each in given]
        matches = [secrets.compare_digest(a, b) for a in digests for b in self._digests]
        return any(matches)


def find_bearer(headers: Mapping[str, str]) -> str | None:
    """Return the bearer token of a request; None without one.

    Args:
        headers: By name, in whatever case the mapping takes for ``authorization``.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
