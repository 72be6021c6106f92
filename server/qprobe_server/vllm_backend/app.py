"""Builds vLLM's app with our additions, and runs it.

Relies on vLLM 0.32.0: ``build_app`` (entrypoints/launchers/app.py), ``init_app_state``
(entrypoints/launchers/api_server/app_state.py), ``setup_server, serve_http``
(entrypoints/launchers/launcher.py), ``OpenAIServingModels.is_base_model, base_model_paths,
lora_requests, lora_resolvers`` (entrypoints/openai/models/serving.py), ``LoRARequest.lora_path``
(lora/request.py); follows its ``build_and_serve``, which leaves no room between
building the app and serving it.
"""

import argparse
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI
from starlette.middleware import Middleware
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import run_headless
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.usage.usage_lib import UsageContext

from qprobe import Probe
from qprobe_server import quiet
from qprobe_server.choice.code_vote import make_code_runner
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge import attachment
from qprobe_server.edge.access_log import start_access_log
from qprobe_server.edge.banner import Listening, describe_server
from qprobe_server.edge.lifetime import GRACE_S, ending_at_once, serve_until_signalled
from qprobe_server.edge.middleware import AppState
from qprobe_server.edge.stopping import OpenRequests, StoppingMiddleware
from qprobe_server.edge.upgrades import UpgradeIgnoringProtocol
from qprobe_server.errors import StartupError
from qprobe_server.library.fit import check_exposed, check_fit, check_layers
from qprobe_server.library.flags import choose_layers, read_probes
from qprobe_server.library.lifecycle import ProbeLifecycle, check_probes
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry
from qprobe_server.library.store import ProbeStore
from qprobe_server.settings import Settings, name_probes, read_settings
from qprobe_server.vllm_backend import models_route
from qprobe_server.vllm_backend.arguments import prepare_engine_args
from qprobe_server.vllm_backend.checks import (
    check_installation,
    describe_model,
    find_worker_cls,
)
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.cpu import prepare_cpu
from qprobe_server.vllm_backend.lifetime import stop_engine

__all__ = ["attach", "run"]


def run(args: argparse.Namespace) -> None:
    """Serve until a signal stops the process.

    Raises:
        StartupError: The flags, the probes, the model and the machine do not go together.
    """
    cli_env_setup()
    configure_logging_from_args(args)
    args.use_tqdm_on_load &= not quiet.is_quiet()
    validate_parsed_serve_args(args)
    check_installation()
    settings = read_settings(args)
    if settings.json_access_log:
        start_access_log()
    store = None if args.probe_dir is None else ProbeStore(args.probe_dir)
    probes = read_probes(name_probes(args.probe), store)
    settings.check([each.name for each in probes])
    layers = choose_layers(args.probe_layers, probes)
    prepare_engine_args(args, layers, find_worker_cls("ScoringWorker"))
    if args.headless:
        prepare_cpu(args)
        args.api_server_count = 0
        run_headless(args)
        return
    with ending_at_once():
        prepare_cpu(args)
        engine_args = AsyncEngineArgs.from_cli_args(args)
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        facts = describe_model(config)
    # Not by a flag: with this vLLM wants a fixed backend, which refuses schemas that others take.
    config.structured_outputs_config.disable_any_whitespace |= args.compact_json

    def check(probe: Probe) -> None:
        check_fit(probe, facts, allow_model_mismatch=args.allow_model_mismatch)
        check_exposed(probe, layers)
        settings.check_probe(probe.info)

    check_probes(probes, check)
    check_layers(layers, facts)  # what --probe-layers adds to the probes' own
    uvloop.run(_serve(args, engine_args, config, settings, probes, check, store))


async def _serve(
    args: argparse.Namespace,
    engine_args: AsyncEngineArgs,
    config: Any,
    settings: Settings,
    probes: list[LoadedProbe],
    check: Callable[[Probe], None],
    store: ProbeStore | None,
) -> None:
    requests = OpenRequests()
    registry = ProbeRegistry()
    engine: RerankingLLM | None = None
    let_end_s = float(config.shutdown_timeout)
    try:
        with ending_at_once():
            _, sock = setup_server(args, reuse_port=False)
            sys.stderr.write(f"qprobe: loading {_name_model(args)} ...\n")
            engine = _start_engine(engine_args, config)
            await engine.reset_mm_cache()
            lifecycle = ProbeLifecycle(
                registry,
                load=engine.load_probes,
                check=check,
                store=store,
                default_probe=settings.default_probe,
            )
            await lifecycle.start(probes)
            probes.clear()  # the workers have the weights
            engine.metrics.watch(registry)
            app = await _build(args, engine)
            app.user_middleware.append(Middleware(StoppingMiddleware, requests=requests))
            attach(app, settings, registry, lifecycle)
        let_end_s = await serve_until_signalled(
            app,
            serve_http(app, sock=sock, **_uvicorn_options(args)),
            requests,
            let_end_s=config.shutdown_timeout,
            on_ready=partial(_announce, args, sock, engine, app.state.qprobe),
        )
    finally:
        if engine is not None:
            await stop_engine(engine.shutdown, let_end_s=let_end_s)
            engine.inbox.close()
    sock.close()


def _start_engine(engine_args: AsyncEngineArgs, config: Any) -> RerankingLLM:
    try:
        return RerankingLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            disable_log_stats=engine_args.disable_log_stats,
        )
    except RuntimeError as error:
        raise StartupError(f"the engine did not start, as it says above: {error}") from error


def _announce(
    args: argparse.Namespace,
    sock: socket.socket,
    engine: RerankingLLM,
    state: AppState,
) -> None:
    """Say on the terminal that the server is ready, and how to use it."""
    keys = [key for key in args.api_key or [envs.VLLM_API_KEY] if key]
    listening = Listening(
        host=args.host,
        # The flag's, but for 0, which is any.
        port=args.port if args.uds else sock.getsockname()[1],
        root_path=args.root_path or "",
        is_tls=bool(args.ssl_certfile),
        socket=args.uds,
        # Whoever reads the terminal need not know the key.
        key=None if not keys else "$VLLM_API_KEY" if envs.VLLM_API_KEY in keys else "YOUR_API_KEY",
    )
    template = args.chat_template
    if template is None and not args.skip_tokenizer_init:
        template = getattr(engine.get_tokenizer(), "chat_template", None)
    block = describe_server(
        listening,
        model=_name_model(args),
        is_chat=template is not None,
        probes=state.registry.probes(),
        settings=state.settings,
        adapters=state.list_adapters(),
    )
    sys.stdout.write(block)
    sys.stdout.flush()


def _name_model(args: argparse.Namespace) -> str:
    """Return the name that requests use first."""
    return str((args.served_model_name or [args.model])[0])


async def _build(args: argparse.Namespace, engine: RerankingLLM) -> FastAPI:
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    return app


def attach(
    app: FastAPI, settings: Settings, registry: ProbeRegistry, lifecycle: ProbeLifecycle
) -> None:
    """Add our middleware, routes and state to vLLM's app."""
    models = app.state.openai_serving_models

    def is_model(name: str) -> bool:
        return models.is_base_model(name) or name in models.lora_requests

    def list_models() -> list[str]:
        return [*(each.name for each in models.base_model_paths), *models.lora_requests]

    def list_adapters() -> dict[str, str]:
        # As a dataset calls the one that it was sampled with.
        loaded = models.lora_requests.items()
        return {name: Path(each.lora_path).absolute().name for name, each in loaded}

    # vLLM may take any name, or load an adapter when it is first asked for.
    may_load = envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING and models.lora_resolvers
    is_open = envs.VLLM_SKIP_MODEL_NAME_VALIDATION or may_load
    state = AppState(
        settings=settings,
        registry=registry,
        is_model=is_model,
        list_models=None if is_open else list_models,
        votes=VoteReader(make_code_runner(settings)),
        list_adapters=list_adapters,
    )
    attachment.attach(app, state, lifecycle, routers=[models_route.router])


def _uvicorn_options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {
        "enable_ssl_refresh": args.enable_ssl_refresh,
        "host": args.host,
        "port": args.port,
        "http": UpgradeIgnoringProtocol,
        "log_level": args.uvicorn_log_level,
        "access_log": not (args.disable_uvicorn_access_log or args.json_access_log),
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        "timeout_graceful_shutdown": GRACE_S,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "ssl_ciphers": args.ssl_ciphers,
        "h11_max_incomplete_event_size": args.h11_max_incomplete_event_size,
        "h11_max_header_count": args.h11_max_header_count,
    }
    if quiet.is_quiet() and "uvicorn_log_level" not in args.given:
        quiet.hush_uvicorn()
    log_config = get_uvicorn_log_config(args)
    if log_config is not None:
        options["log_config"] = log_config
    return options
