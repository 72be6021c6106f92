"""``/v1/models``: vLLM's models, then the aliases of each.

Relies on vLLM 0.32.0: ``OpenAIServingModels.show_available_models``
(entrypoints/openai/models/serving.py), whose list has every name of the base model, then the LoRA
adapters; ``lora_requests`` there.
"""

from typing import Any

from fastapi import APIRouter, Request

from qprobe_server.choice.schemas import ErrorReply, show
from qprobe_server.errors import RequestError

__all__ = ["router"]

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List vLLM's models, then for the base model and each LoRA adapter an alias for every probe.

    Those of a probe that is refused for that model are left out.
    """
    models, ours = request.app.state.openai_serving_models, request.app.state.qprobe
    reply: dict[str, Any] = (await models.show_available_models()).model_dump()
    adapters = ours.list_adapters()
    base, *others = reply["data"]
    for card in (base, *(each for each in others if each["id"] in adapters)):
        for probe in ours.registry.probes():
            if ours.settings.fits_adapter(probe.info, adapters.get(card["id"])):
                alias = {**card, "id": f"{card['id']}:{probe.name}", "parent": card["id"]}
                reply["data"].append(alias)
    return reply


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorReply}})
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """Return one of these."""
    listed = (await list_models(request))["data"]
    found: dict[str, Any] | None = next((each for each in listed if each["id"] == model), None)
    if found is None:
        raise RequestError(f"model: {show(model)} does not exist", param="model", status=404)
    return found
