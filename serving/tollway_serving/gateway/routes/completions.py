"""POST /completions: text continued, charged by prompt and completion tokens as a chat is."""

from typing import TYPE_CHECKING, Any

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway import shapes
from tollway_serving.gateway.admission import Estimate, estimate_text
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.completions_schema import COMPLETION, DEFAULT_TOKENS, CompletionRequest, read_completion
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.handle import handle
from tollway_serving.gateway.parameters import Fitted
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.text_work import TextWork

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_ENDPOINT: Endpoint = "Completions"


class CompletionWork(TextWork):
    """A completion as `handle` asks for it, model by model."""

    endpoint: Endpoint = _ENDPOINT
    path = "/completions"
    answers = "completions"
    prompt = "prompt"
    shape = shapes.COMPLETION

    def __init__(self, request: CompletionRequest, ignore: bool) -> None:
        super().__init__(request.stream, request.include_usage)
        self.request = request
        self.ignore = ignore
        self.model = request.model
        self.unknown = request.unknown
        self.collected = "best_of" not in request.values  # choices that are compared can't be streamed

    def fit(self, model: Model) -> Fitted:
        fitted = COMPLETION.fit(self.request.values, model, self.ignore)
        for name in ("stream", "stream_options"):
            fitted.payload.pop(name, None)
        for name, other in (("n", "best_of"), ("stop", "echo")):
            if name in fitted.here and other in fitted.payload:
                text = f"The model '{model.entry.model_id}' does not support '{name}' together with '{other}'."
                raise ApiError("unsupported_parameter", text, param=name)
        return fitted

    def estimate(self, entry: ModelEntry, first: bool) -> Estimate:
        request = self.request
        return estimate_text(
            entry,
            request.prompts,
            n=request.generated,
            wanted=request.max_tokens,
            maximum="max_tokens",
            first=first,
            default=DEFAULT_TOKENS,
        )

    def payload(self, fitted: Fitted, entry: ModelEntry, granted: int) -> dict[str, Any]:
        body = fitted.payload
        body["model"] = entry.target.model
        body["max_tokens"] = granted // self.request.generated
        self.stream_options(entry, body)
        self.in_its_stead(fitted, self.request.generated)
        return body


async def complete(gateway: "Gateway", call: Call) -> None:
    await handle(gateway, call, _ENDPOINT, lambda body, ignore: CompletionWork(read_completion(body, ignore), ignore))


ROUTES = (Route("POST", "/completions", complete, ("requests", "input_tokens", "output_tokens"), request=COMPLETION),)
