"""Adds our part to the OpenAPI document that the app's routes make."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from qprobe_server.choice.schemas import ErrorReply, QProbeReply, QProbeRequest
from qprobe_server.edge.middleware import AppState

__all__ = ["document"]

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/"


def document(app: FastAPI) -> None:
    """Have the app's document show ``q_probe`` in the requests and replies that may hold it."""
    make: Callable[[], Json] = app.openapi
    state: AppState = app.state.qprobe

    def openapi() -> Json:
        if app.openapi_schema is None:
            _extend(make(), state.routes.reranked)
        made = app.openapi_schema
        assert made is not None
        return made

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _extend(made: Json, reranked: Sequence[str]) -> None:
    schemas: Json = made["components"]["schemas"]
    for model in (QProbeRequest, QProbeReply, ErrorReply):
        _add(schemas, model)
    for path in reranked:
        operation = made["paths"].get(path, {}).get("post")
        if operation is None or "requestBody" not in operation:
            continue  # not there, or a route that does not say what it reads
        asked = operation["requestBody"]["content"]["application/json"]
        _require(schemas, asked, "q_probe", QProbeRequest)
        for status in ("400", "404"):
            operation["responses"].setdefault(status, {"description": "Refused"})
        answered = operation["responses"]["200"].setdefault("content", {})
        _require(schemas, answered.setdefault("application/json", {}), "q_probe", QProbeReply)


def _add(schemas: Json, model: type[BaseModel]) -> None:
    made = model.model_json_schema(ref_template=_REFERENCE + "{model}")
    schemas.update(made.pop("$defs", {}))
    schemas[model.__name__] = made


def _require(schemas: Json, content: Json, name: str, model: type[BaseModel]) -> None:
    """Allow a field in the schema of some content, which may be a reference to a named one."""
    schema = content.get("schema", {})
    ours = {"properties": {name: {"$ref": _REFERENCE + model.__name__}}}
    content["schema"] = {"allOf": [schema, ours]} if schema else {"type": "object", **ours}
