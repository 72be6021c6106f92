"""Middleware for servers of the tests: ``GET /held`` counts the candidates that the workers hold.

Given to vLLM by ``--middleware held_route.HeldRoute``, with this folder in PYTHONPATH.
"""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class HeldRoute:
    """Answers its one route, and passes all others on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the workers of all ranks."""
        if scope["type"] == "http" and scope["path"] == "/held":
            held = await scope["app"].state.engine_client.num_held_candidates()
            await JSONResponse(held)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
