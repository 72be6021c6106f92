"""The proxy's app, and its life from start to end."""

import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from qprobe import Probe
from qprobe_server import quiet
from qprobe_server.choice.code_vote import make_code_runner
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge.attachment import attach
from qprobe_server.edge.banner import Listening, describe_proxy
from qprobe_server.edge.lifetime import GRACE_S, ending_at_once, serve_until_signalled
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.edge.middleware import AppState
from qprobe_server.edge.stopping import OpenRequests, StoppingMiddleware
from qprobe_server.edge.upgrades import UpgradeIgnoringProtocol
from qprobe_server.library.lifecycle import ProbeLifecycle, check_probes
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry
from qprobe_server.library.store import ProbeStore
from qprobe_server.proxy.directory import Directory
from qprobe_server.proxy.endpoint import ROUTES, Endpoint, Limits
from qprobe_server.proxy.keys import KeyMiddleware
from qprobe_server.proxy.metrics import UpstreamMetrics
from qprobe_server.proxy.own_routes import make_router
from qprobe_server.proxy.reader import Reader
from qprobe_server.proxy.settings import ProxySettings
from qprobe_server.proxy.upstream import Upstream
from qprobe_server.settings import Settings

__all__ = ["OpenReader", "make_app", "open_upstreams", "serve"]

_ANY_HOST = "0.0.0.0"
OpenReader = Callable[[Sequence[LoadedProbe]], Awaitable[Reader]]


async def serve(
    own: ProxySettings,
    settings: Settings,
    probes: list[LoadedProbe],
    store: ProbeStore | None,
    open_reader: OpenReader,
) -> None:
    """Serve until a signal stops the process.

    Args:
        own: The proxy's settings.
        settings: Those of every server.
        probes: That it starts with; emptied.
        store: Where uploads are kept; None keeps them until the server stops.
        open_reader: Makes what reads candidates, for these probes.

    Raises:
        StartupError: The reader cannot start, or a probe is not for it.
    """
    requests = OpenRequests()
    counted = CollectorRegistry()
    async with AsyncExitStack() as stack:
        # Before the reader, which may take minutes.
        upstreams = await stack.enter_async_context(open_upstreams(own, counted))
        with ending_at_once():
            reader = await open_reader(probes)
        stack.push_async_callback(reader.close)
        app = await make_app(own, settings, probes, store, reader, upstreams, counted)
        probes.clear()  # the reader has the weights
        _freeze_heap()
        app.user_middleware.insert(-1, Middleware(StoppingMiddleware, requests=requests))
        await serve_until_signalled(
            app,
            _run(app, own, has_log=not settings.json_access_log),
            requests,
            let_end_s=own.shutdown_timeout_s,
            on_ready=lambda: _announce(app, own),
        )


@asynccontextmanager
async def open_upstreams(
    own: ProxySettings, counted: CollectorRegistry
) -> AsyncIterator[Mapping[str | None, Upstream]]:
    """Give the upstreams of the settings by name, and close them in the end.

    Args:
        own: The proxy's settings.
        counted: Gets their metrics.

    Raises:
        StartupError: The environment says of connections what cannot be.
    """
    async with AsyncExitStack() as stack:
        metrics = UpstreamMetrics(counted)
        upstreams = {}
        for name, address in own.upstreams.items():
            upstreams[name] = Upstream(
                address,
                own.bounds,
                key=own.keys.get(name),
                passes_credentials=own.passes_credentials,
                meter=metrics.meter(name),
            )
            stack.push_async_callback(upstreams[name].close)
        yield upstreams


async def make_app(
    own: ProxySettings,
    settings: Settings,
    probes: Sequence[LoadedProbe],
    store: ProbeStore | None,
    reader: Reader,
    upstreams: Mapping[str | None, Upstream],
    counted: CollectorRegistry,
) -> FastAPI:
    """Return the app, with its probes loaded.

    Args:
        own: See ``serve``, as the others.
        settings: Likewise; nothing is rejected early, as candidates are read when they are whole.
        probes: Likewise; stays as it is.
        store: Likewise.
        reader: Of candidates.
        upstreams: By name.
        counted: Has their metrics; gets all others, and is what ``/metrics`` shows.

    Raises:
        StartupError: The reader cannot score by a probe.
    """
    settings = replace(settings, rejects_early=False)
    registry = ProbeRegistry()
    lifecycle = await _load(registry, settings, probes, store, reader)
    metrics = RerankMetrics(counted)
    metrics.watch(registry)
    directory = Directory(upstreams, registry)
    limits = Limits(
        max_body_mib=settings.max_body_mib,
        budget_tokens=own.budget_tokens,
        has_n=own.has_n,
        keep_alive_s=settings.keep_alive_s,
    )
    endpoint = Endpoint(directory, reader, metrics, limits)
    app = FastAPI(title="qprobe proxy", docs_url=None, redoc_url=None)
    app.router.routes.append(Route("/{path:path}", endpoint, include_in_schema=False))
    if own.allowed_origins:  # outside the check of keys: a browser asks first, without one
        app.user_middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=own.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
            )
        )
    if own.api_keys:
        admin = [] if settings.admin_api_key is None else [settings.admin_api_key]
        app.user_middleware.append(Middleware(KeyMiddleware, keys=[*own.api_keys, *admin]))
    state = AppState(
        settings=settings,
        registry=registry,
        is_model=directory.is_model,
        list_models=None if directory.is_open else lambda: directory.names,
        votes=VoteReader(make_code_runner(settings)),
        routes=ROUTES,
    )
    attach(app, state, lifecycle, routers=[make_router(directory, reader, counted)])
    return app


async def _load(
    registry: ProbeRegistry,
    settings: Settings,
    probes: Sequence[LoadedProbe],
    store: ProbeStore | None,
    reader: Reader,
) -> ProbeLifecycle:
    """Give probes to the reader and to the registry; return what changes them from then on."""

    def check(probe: Probe) -> None:
        reader.check(probe)
        settings.check_probe(probe.info)

    check_probes(probes, check)
    lifecycle = ProbeLifecycle(
        registry,
        load=reader.load,
        check=check,
        store=store,
        default_probe=settings.default_probe,
    )
    await lifecycle.start(probes)
    return lifecycle


def _freeze_heap() -> None:
    """Have the garbage collector look no more at what is there, as vLLM's server does at its start.

    What stays are mostly modules. To go through them takes longest of a collection, and holds all
    requests; collections come with many tasks.
    """
    gc.collect()
    gc.freeze()


async def _run(app: FastAPI, own: ProxySettings, *, has_log: bool) -> None:
    """Run uvicorn's server until it should exit."""
    config = uvicorn.Config(
        app,
        host=own.host or _ANY_HOST,
        port=own.port,
        http=UpgradeIgnoringProtocol,
        log_level="info",
        access_log=has_log,
        timeout_graceful_shutdown=GRACE_S,
        # Of an upstream's replies its own are kept.
        server_header=False,
        date_header=False,
    )
    app.state.server = server = uvicorn.Server(config)
    quiet.hush_uvicorn()
    quiet.hide_queries()
    await server.serve()


def _announce(app: FastAPI, own: ProxySettings) -> None:
    """Say on the terminal that the proxy is ready."""
    port = app.state.server.servers[0].sockets[0].getsockname()[1]
    state: AppState = app.state.qprobe
    block = describe_proxy(
        # Whoever reads the terminal need not know the key.
        Listening(host=own.host, port=port, key="YOUR_API_KEY" if own.api_keys else None),
        upstreams={name: address.origin for name, address in own.upstreams.items()},
        probes=state.registry.probes(),
        settings=state.settings,
    )
    sys.stdout.write(block)
    sys.stdout.flush()
