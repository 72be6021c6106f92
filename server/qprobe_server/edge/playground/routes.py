"""Serves the playground: one static page and its assets, the same for everybody.

Knows nothing of probes and engines: the page asks the API for all that it shows, with the key that
its user types. All URLs in it are relative, so that it works behind any root path.
"""

import hashlib
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

__all__ = ["router"]

_PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# `require-trusted-types-for` makes the browser itself refuse to read text as HTML: what a model
# wrote can never become markup here.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked for again each time: a new version of the server shows at once.
    "cache-control": "no-cache",
}


def _get_page(request: Request) -> Response:
    return _serve(request, _PAGE)


def _get_asset(request: Request) -> Response:
    name = request.path_params["name"]
    # As a relative URL the page's own would then start one folder too deep.
    return Response(status_code=404, headers=_HEADERS) if name == _PAGE else _serve(request, name)


def _drop_slash(request: Request) -> Response:
    # Relative, since a proxy may have taken a prefix off the path.
    return RedirectResponse("../playground", status_code=308, headers=_HEADERS)


def _serve(request: Request, name: str) -> Response:
    """Serve a file of the folder. The name is only compared, so no path is made of it."""
    media_type = _MEDIA_TYPES.get(name.rpartition(".")[2])
    files = (resources.files("qprobe_server.edge.playground") / "page").iterdir()
    content = next((file.read_bytes() for file in files if file.name == name), None)
    if media_type is None or content is None:
        return Response(status_code=404, headers=_HEADERS)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


router = APIRouter()
router.add_route("/playground", _get_page, include_in_schema=False)
router.add_route("/playground/", _drop_slash, include_in_schema=False)
router.add_route("/playground/{name}", _get_asset, include_in_schema=False)
