"""Puts what is ours into an app: middleware, routes, state. The same whoever samples behind it."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from qprobe_server.edge import routes
from qprobe_server.edge.access_log import AccessLogMiddleware
from qprobe_server.edge.middleware import AppState, RerankMiddleware
from qprobe_server.edge.openapi import document
from qprobe_server.edge.playground import routes as playground_routes
from qprobe_server.errors import RequestError
from qprobe_server.library.lifecycle import ProbeLifecycle

__all__ = ["attach"]


def attach(
    app: FastAPI,
    state: AppState,
    lifecycle: ProbeLifecycle,
    *,
    routers: Sequence[APIRouter] = (),
) -> None:
    """Add our middleware, routes and state to an app that has its own.

    Args:
        app: Answers what we do not.
        state: What our middleware and routes need.
        lifecycle: Of the probes.
        routers: Further ones of ours; they too go before the app's.
    """
    app.state.qprobe = state
    app.add_exception_handler(RequestError, routes.refuse)
    # The first is outermost: it gives every request its id, also a refused one. Appended is
    # innermost: behind the app's check of API keys.
    app.user_middleware.insert(0, Middleware(AccessLogMiddleware))
    app.user_middleware.append(Middleware(RerankMiddleware))
    app.middleware_stack = None  # vLLM has built it already; Starlette builds it again
    before = len(app.router.routes)
    app.include_router(routes.router)
    app.include_router(playground_routes.router)
    if state.settings.admin_api_key is not None:
        app.include_router(routes.make_admin_router(lifecycle, state.settings.admin_api_key))
    for router in routers:
        app.include_router(router)
    # The first route that matches answers: ours to /v1/models is before vLLM's.
    app.router.routes[:] = app.router.routes[before:] + app.router.routes[:before]
    document(app)
