"""Routes of the proxy that are no upstream's: health, metrics, and the models of several."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from qprobe_server.errors import ReadingError, describe_error
from qprobe_server.proxy.directory import Directory
from qprobe_server.proxy.reader import Reader

__all__ = ["make_router"]


def make_router(directory: Directory, reader: Reader, registry: CollectorRegistry) -> APIRouter:
    """Return the routes.

    Args:
        directory: The upstreams; where it is one, the list of models is its own.
        reader: Of candidates.
        registry: Of the metrics.
    """
    router = APIRouter()

    @router.get("/health")
    async def check_health() -> Response:
        """Tell whether requests can be reranked."""
        try:
            await reader.check_health()
        except ReadingError as error:
            return JSONResponse(describe_error(str(error), status=503), status_code=503)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics", include_in_schema=False)
    def get_metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    # As some load balancers and monitors ask; uvicorn leaves the body out.
    for path, answer in (("/health", check_health), ("/metrics", get_metrics)):
        router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)

    if len(directory) > 1:

        @router.get("/v1/models")
        async def list_models() -> Mapping[str, Any]:
            """List the models that have an upstream of their own."""
            same = {"object": "model", "created": 0, "owned_by": "upstream"}
            return {"object": "list", "data": [{"id": name, **same} for name in directory.names]}

    return router
