"""Our own routes: what probes there are."""

from typing import Any

from fastapi import APIRouter, Request

from qprobe_server.middleware import AppState

__all__ = ["router"]

router = APIRouter()


@router.get("/v1/probes")
async def list_probes(request: Request) -> dict[str, Any]:
    """List the loaded probes with their metadata."""
    state: AppState = request.app.state.qprobe
    return {"object": "list", "data": [each.card() for each in state.registry.probes()]}
