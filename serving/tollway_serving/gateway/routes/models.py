"""GET /models and GET /models/{id}: the models that the caller's plan and key give. Free."""

from typing import TYPE_CHECKING, Any

import orjson

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.route import Route

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway


async def list_models(gateway: "Gateway", call: Call) -> None:
    access = gateway.authenticate(call, None)
    models = (gateway.catalogue.model(access, model_id) for model_id in sorted(access.model_ids))
    await call.respond(
        200, orjson.dumps({"object": "list", "data": [model_object(m.entry) for m in models if m is not None]})
    )


async def retrieve_model(gateway: "Gateway", call: Call) -> None:
    access = gateway.authenticate(call, None)
    name = call.rest
    model = gateway.catalogue.model(access, name)
    if model is None:
        raise model_not_found(name)
    await call.respond(200, orjson.dumps(model_object(model.entry)))


def model_not_found(name: str) -> ApiError:
    """The same for a model that does not exist and for one that the plan does not give."""
    shown = "".join(c for c in name[:128] if c.isprintable())
    return ApiError(
        "model_not_found", f"The model '{shown}' does not exist or you do not have access to it.", param="model"
    )


def model_object(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.model_id,
        "object": "model",
        "created": entry.created,
        "owned_by": entry.owned_by,
        "licence": entry.licence,
        "input_format": entry.input_format,
        "output_format": entry.output_format,
        "parameters_number": entry.parameters_number,
        "capabilities": {
            "supports_audio": "AudioInput" in entry.capabilities,
            "supports_image": "ImageInput" in entry.capabilities,
            "supports_function_calling": "Tools" in entry.capabilities,
        },
    }


ROUTES = (
    Route("GET", "/models", list_models, ()),
    Route("GET", "/models/{id}", retrieve_model, ()),
)
