"""``/v1/models``: vLLM's models, then an alias of the base model for every probe.

Relies on vLLM 0.32.0: ``OpenAIServingModels.show_available_models``
(entrypoints/openai/models/serving.py), whose list begins with the base model.
"""

from typing import Any

from fastapi import APIRouter, Request

from qprobe_server.choice.schemas import ErrorReply, show
from qprobe_server.errors import RequestError

__all__ = ["router"]

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List vLLM's models, then an alias for every probe of the base model."""
    state = request.app.state
    reply: dict[str, Any] = (await state.openai_serving_models.show_available_models()).model_dump()
    base = reply["data"][0]
    for probe in state.qprobe.registry.probes():
        reply["data"].append({**base, "id": f"{base['id']}:{probe.name}", "parent": base["id"]})
    return reply


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorReply}})
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """Return one of these."""
    listed = (await list_models(request))["data"]
    found: dict[str, Any] | None = next((each for each in listed if each["id"] == model), None)
    if found is None:
        raise RequestError(f"model: {show(model)} does not exist", param="model", status=404)
    return found
