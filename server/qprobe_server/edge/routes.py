"""Our own routes: what probes there are, and how they come and go."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from qprobe_server.choice.schemas import ErrorReply
from qprobe_server.edge.cards import ProbeCard, ProbeDeleted, ProbeList, make_card
from qprobe_server.edge.credentials import Keys, find_bearer
from qprobe_server.edge.middleware import AppState
from qprobe_server.errors import RequestError
from qprobe_server.library.lifecycle import ProbeLifecycle

__all__ = ["make_admin_router", "refuse", "router"]

# A probe of a hidden size of 16,384 takes 64 KiB; its header holds what its maker likes.
_MAX_BYTES = 4 << 20

_NAME = "/v1/probes/{name}"

_Responses = dict[int | str, dict[str, Any]]
_UNKNOWN: _Responses = {404: {"model": ErrorReply}}
_BAD_BODY: _Responses = {400: {"model": ErrorReply}, 413: {"model": ErrorReply}}
_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}

router = APIRouter()


@router.get("/v1/probes")
async def list_probes(request: Request) -> ProbeList:
    """List the probes with their metadata."""
    registry = _state(request).registry
    return ProbeList(data=[make_card(each, registry) for each in registry.probes()])


@router.get(_NAME, responses=_UNKNOWN)
async def get_probe(request: Request, name: str) -> ProbeCard:
    """Return a probe's metadata."""
    registry = _state(request).registry
    probe = registry.get(name)
    if probe is None:
        raise RequestError(
            f"name: the probe {name[:80]!r} does not exist", param="name", status=404
        )
    return make_card(probe, registry)


def make_admin_router(lifecycle: ProbeLifecycle, admin_api_key: str) -> APIRouter:
    """Return the routes that change probes, behind a key of their own."""
    keys = Keys([admin_api_key])

    def check_key(request: Request) -> None:
        given = find_bearer(request.headers)
        if given is None or not keys.holds([given]):
            raise RequestError(
                "this route wants the server's admin key as a bearer token",
                param="authorization",
                status=401,
            )

    admin = APIRouter(dependencies=[Depends(check_key)], responses={401: {"model": ErrorReply}})

    @admin.put(
        _NAME,
        responses={201: {"model": ProbeCard}, **_BAD_BODY},
        openapi_extra={"requestBody": _BODY},
    )
    async def put_probe(request: Request, response: Response, name: str) -> ProbeCard:
        """Serve a probe by this name: new, or instead of its present version.

        Requests that have begun with another version end with it.
        """
        served, is_new = await lifecycle.put(name, await _read_body(request))
        response.status_code = 201 if is_new else 200
        return make_card(served, _state(request).registry)

    @admin.delete(_NAME, responses={**_UNKNOWN, 409: {"model": ErrorReply}})
    async def delete_probe(name: str) -> ProbeDeleted:
        """Serve a probe no more. Requests that have begun with it end with it."""
        await lifecycle.delete(name)
        return ProbeDeleted(id=name)

    return admin


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that one of our routes refuses."""
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), status_code=error.status)


async def _read_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = int(request.headers.get("content-length", "0"))  # uvicorn has checked that it is one
    if size <= _MAX_BYTES:
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_BYTES:
                break
    if size > _MAX_BYTES:
        raise RequestError(
            f"body: a probe's file must have at most {_MAX_BYTES} bytes, got {size} or more",
            param="body",
            status=413,
        )
    return b"".join(chunks)


def _state(request: Request) -> AppState:
    state: AppState = request.app.state.qprobe
    return state
