"""Keys: those that clients of the proxy need, and those that it shows to others."""

import json
import os
from collections.abc import Collection, Iterable, Mapping

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qprobe_server.edge.credentials import Keys, find_bearer
from qprobe_server.errors import StartupError, describe_error
from qprobe_server.proxy.address import Address

__all__ = ["KeyMiddleware", "find_api_keys", "find_embeddings_key", "find_upstream_keys"]

_API_KEY_VARIABLE = "QPROBE_API_KEY"
_UPSTREAM_VARIABLE = "QPROBE_UPSTREAM_API_KEY"
_UPSTREAMS_VARIABLE = "QPROBE_UPSTREAM_API_KEYS"
_EMBEDDINGS_VARIABLE = "QPROBE_EMBEDDINGS_API_KEY"
# What tells nobody anything, or is a page that asks for the key, with its files.
_OPEN = ("/health", "/metrics", "/playground", "/openapi.json")
_OPEN_FILES = "/playground/"


class KeyMiddleware:
    """Refuses requests without a key: nothing of them reaches an upstream.

    Args:
        app: What answers.
        keys: Each of them opens it.
    """

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = Keys(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not _is_open(scope) and not self._has_key(scope):
            said = "the request has no API key of this server, or a wrong one"
            refusal = JSONResponse(describe_error(said, status=401), status_code=401)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        """Whether it has a key where OpenAI's, Azure's or Anthropic's clients put it."""
        headers = Headers(scope=scope)
        given = (find_bearer(headers), headers.get("x-api-key"), headers.get("api-key"))
        return self._keys.holds(each for each in given if each)


def find_api_keys(given: Collection[str] | None) -> list[str]:
    """Return the keys of the flags, or that of the environment; none, if all may ask.

    Raises:
        StartupError: One is empty.
    """
    own = os.environ.get(_API_KEY_VARIABLE)
    keys = list(given) if given else [own] if own else []
    if not all(each.strip() for each in keys):
        raise StartupError("--api-key must not be empty")
    return keys


def find_upstream_keys(
    upstreams: Mapping[str | None, Address],
) -> dict[str | None, str]:
    """Return the keys of upstreams by the names that these have; none for what needs none.

    Raises:
        StartupError: A key would be shown to several hosts, or belongs to no upstream.
    """
    one = os.environ.get(_UPSTREAM_VARIABLE)
    several = os.environ.get(_UPSTREAMS_VARIABLE)
    if one and several:
        raise StartupError(f"give {_UPSTREAM_VARIABLE} or {_UPSTREAMS_VARIABLE}, not both")
    if one:
        if len({each.origin for each in upstreams.values()}) > 1:
            raise StartupError(
                f"{_UPSTREAM_VARIABLE} would be shown to several hosts: give "
                f'{_UPSTREAMS_VARIABLE}=\'{{"NAME": "key"}}\' by the names of --upstream'
            )
        return dict.fromkeys(upstreams, one)
    return {} if not several else _read_keys(several, upstreams)


def find_embeddings_key() -> str | None:
    """Return the key of the embeddings endpoint, None if it needs none."""
    return os.environ.get(_EMBEDDINGS_VARIABLE) or None


def _read_keys(text: str, upstreams: Mapping[str | None, Address]) -> dict[str | None, str]:
    try:
        keys = json.loads(text)
    except ValueError:
        keys = None  # its error quotes the text
    if not isinstance(keys, dict) or not all(isinstance(each, str) for each in keys.values()):
        raise StartupError(f"{_UPSTREAMS_VARIABLE} must be a JSON object of names and keys")
    # The upstream without a name has an empty one there.
    named: dict[str | None, str] = {name or None: key for name, key in keys.items()}
    for name in named:
        if name not in upstreams:
            raise StartupError(
                f"{_UPSTREAMS_VARIABLE} names {name or ''!r}, which is no --upstream"
            )
    return named


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] in ("GET", "HEAD") and (path in _OPEN or path.startswith(_OPEN_FILES))
