"""The ASGI edge: reads our fields out of a request, and writes ours into its reply.

Everything else of a request goes to the app behind untouched, and of other paths not even the body
is read. Stands inside the check of API keys, so that a request without one never gets here.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from qprobe_server.choice.request import RerankRequest, resolve, resolve_alias, split_alias
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.choice.schemas import show
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge import body as bodies
from qprobe_server.edge.access_log import settle_request_id
from qprobe_server.edge.reply import ReplyWriter, unbuffered
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

__all__ = ["AppState", "RerankMiddleware", "Routes"]

Body = dict[str, Any]

_COMPLETIONS = "/v1/completions"
# What SageMaker calls; by its body vLLM takes it for a chat completion or a completion.
_INVOCATIONS = "/invocations"
# A header of SageMaker's that names the model there, whatever the body says.
_SAGEMAKER_MODEL = "x-amzn-sagemaker-adapter-identifier"
# Names of models that an error message lists.
_MAX_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Routes:
    """The paths of requests whose body is read, with POST; of others nothing is looked at.

    Attributes:
        reranked: Their answers are reranked.
        aliased: They take a model's alias, and sample nothing.
        not_reranked: They sample or score in ways that are not reranked.
        refuses_other_types: Whether the app refuses what does not say that it is JSON. Else it is
            read here all the same: whoever is behind the app may take it for JSON.
    """

    reranked: Sequence[str]
    aliased: Sequence[str]
    not_reranked: Sequence[str]
    refuses_other_types: bool


# vLLM's.
ROUTES = Routes(
    reranked=(
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        _COMPLETIONS,
        "/v1/responses",
        "/v1/messages",
        _INVOCATIONS,
    ),
    aliased=(
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/responses/render",
        "/v1/messages/render",
        "/v1/messages/count_tokens",
        "/cohere/v2/chat/render",
        "/tokenize",
        "/detokenize",
    ),
    not_reranked=(
        "/inference/v1/generate",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/v1/systemone",
    ),
    refuses_other_types=True,
)


@dataclass(frozen=True)
class AppState:
    """What requests need; stands at ``app.state.qprobe``.

    Attributes:
        settings: The server's flags.
        registry: The loaded probes.
        is_model: Whether a name is a base model or LoRA adapter that is served.
        list_models: Returns these names; None where nobody here knows what else is one.
        votes: Reads what requests ask to be voted on.
        list_adapters: Returns, by the names of the LoRA adapters among them, what each is called to
            probes: the last part of its path.
        routes: Of the app behind us.
    """

    settings: Settings
    registry: ProbeRegistry
    is_model: Callable[[str], bool]
    list_models: Callable[[], Sequence[str]] | None = None
    votes: VoteReader = field(default_factory=VoteReader)
    list_adapters: Callable[[], Mapping[str, str]] = dict
    routes: Routes = ROUTES


class RerankMiddleware:
    """Sets ``current_rerank`` around each request that is to be reranked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state: AppState = scope["app"].state.qprobe
        path = _read_path(scope, state.routes)
        if path is None:
            await self._app(scope, receive, send)
            return
        try:
            is_looked_into = _is_looked_into(scope, path, state.routes)
            raw = await bodies.read(scope, receive, max_mib=state.settings.max_body_mib)
            if raw is None:
                return  # the client left before it had sent its request
            if not is_looked_into:  # FastAPI reads all of what vLLM then refuses
                await self._app(scope, bodies.replay(raw, receive), send)
                return
            body = bodies.parse(raw)
            asked_model = _settle_model(scope, path, body)
            request, is_changed = _prepare(path, body, state)
            if is_changed:
                await asyncio.sleep(0)  # a large body takes a while to read, and to write
                raw = bodies.write(body)
        except RequestError as error:
            await _refuse(error)(scope, receive, send)
            return
        scope = _with_headers(scope, path, body, len(raw))
        receive, send = bodies.replay(raw, receive), unbuffered(send)
        if request is None:
            await self._app(scope, receive, send)
            return
        alias = asked_model if asked_model != body.get("model") else None
        await self._rerank(request, alias, scope, receive, send)

    async def _rerank(
        self, request: RerankRequest, alias: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one that is reranked; ``alias`` is the model that its reply names, if not its own.

        It is counted once there is room for it.
        """
        state: AppState = scope["app"].state.qprobe
        rerank = Rerank(request)
        try:
            await rerank.begin()
        except RequestError as error:
            await _refuse(error)(scope, receive, send)
            return
        for probe, _ in request.probes:
            state.registry.count_request(probe)
        token = current_rerank.set(rerank)
        reply = ReplyWriter(rerank, send, model=alias, keep_alive_s=state.settings.keep_alive_s)
        try:
            await self._app(scope, receive, reply.send)
        finally:
            reply.close()
            rerank.end()
            current_rerank.reset(token)
            # For the access log, where there is one.
            scope.get("qprobe_log", {}).update(_summarize(rerank))


def _settle_model(scope: Scope, path: str, body: Body) -> Any:  # noqa: ANN401 JSON of any kind
    """Return the model that is asked; a header that names it is put into the body, as vLLM does."""
    if path == _INVOCATIONS:
        named = Headers(scope=scope).get(_SAGEMAKER_MODEL)
        if named:
            body["model"] = named
    return body.get("model")


def _with_headers(scope: Scope, path: str, body: Body, num_bytes: int) -> Scope:
    """Return a request's scope with its body as it is now, and the headers that go with it."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(num_bytes)
    del headers["transfer-encoding"]
    settle_request_id(scope, headers, body.get("request_id"))
    if path == _INVOCATIONS and headers.get(_SAGEMAKER_MODEL):
        headers[_SAGEMAKER_MODEL] = body["model"]
    return {**scope, "headers": headers.raw, bodies.PARSED: body}


def _refuse(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def _summarize(rerank: Rerank) -> dict[str, Any]:
    weights = {probe.name: weight for probe, weight in rerank.request.probes}
    counts = [each.sampled_tokens for each in rerank.results.values()]
    known = [each for each in counts if each is not None]
    return {
        "probe": weights if rerank.request.is_mix else next(iter(weights)),
        "k": rerank.k,
        "sampled_tokens": sum(known) if len(known) == len(counts) else None,
    }


def _read_path(scope: Scope, routes: Routes) -> str | None:
    """Return the path of a request whose body is to be read, as the routes have it."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
    return path if path in (*routes.reranked, *routes.aliased, *routes.not_reranked) else None


def _is_looked_into(scope: Scope, path: str, routes: Routes) -> bool:
    """Return whether a body is; else it passes as it is.

    Raises:
        RequestError: 415, it is compressed where it would have to be.
    """
    coding = bodies.read_coding(scope)
    if coding is None:
        return bodies.is_json(scope) or not routes.refuses_other_types
    if path in routes.not_reranked:
        return False
    raise RequestError(
        f"content-encoding: a compressed body is not read on {path}, got {show(coding)}",
        param="content-encoding",
        status=415,
    )


def _prepare(path: str, body: Body, state: AppState) -> tuple[RerankRequest | None, bool]:
    """Take what is ours out of a body; return what it asks, and whether the body has changed."""
    if path in state.routes.not_reranked:
        _check_asks_nothing(path, body, state)
        return None, False
    if path not in state.routes.reranked:
        if body.get("q_probe") is not None:
            raise RequestError(f"q_probe: {path} samples nothing to rerank", param="q_probe")
        _check_model(body, state)
        return None, resolve_alias(body, state.registry, state.is_model) is not None
    _check_model(body, state)
    request = resolve(
        body,
        settings=state.settings,
        registry=state.registry,
        votes=state.votes,
        is_model=state.is_model,
        list_adapters=state.list_adapters,
        reads_best_of=path == _COMPLETIONS or (path == _INVOCATIONS and "messages" not in body),
    )
    return request, request is not None


def _check_asks_nothing(path: str, body: Body, state: AppState) -> None:
    """Check that a request for an answer that is not reranked does not ask for that."""
    if body.get("q_probe") is not None:
        raise RequestError(f"q_probe: answers of {path} are not reranked", param="q_probe")
    if resolve_alias(dict(body), state.registry, state.is_model) is not None:
        raise RequestError(
            f"model: {show(body['model'])} names a probe, but answers of {path} are not reranked",
            param="model",
        )


def _check_model(body: Body, state: AppState) -> None:
    """Check that there is the model, where vLLM would refuse it without saying what there is.

    Raises:
        RequestError: 404; lists the models and the probes.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model or state.list_models is None:
        return
    if state.is_model(model) or split_alias(model, state.is_model) is not None:
        return
    names = state.list_models()
    more = f", and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    raise RequestError(
        f"model: {show(model)} does not exist; models: {', '.join(names[:_MAX_SHOWN])}{more}; "
        f"MODEL:PROBE reranks by one of the probes: {state.registry.describe_names()}",
        param="model",
        status=404,
    )
