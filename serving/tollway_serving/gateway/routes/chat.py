"""POST /chat/completions: charged by prompt and completion tokens."""

from typing import TYPE_CHECKING, Any

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway import shapes
from tollway_serving.gateway.admission import Estimate, Prompt, estimate_text
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.chat_messages import inline
from tollway_serving.gateway.chat_schema import ChatRequest, fit_chat, read_chat
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.handle import handle
from tollway_serving.gateway.parameters import Fitted
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.text_work import TextWork

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_ENDPOINT: Endpoint = "ChatCompletions"


class ChatWork(TextWork):
    """A chat request as `handle` asks for it, model by model."""

    endpoint: Endpoint = _ENDPOINT
    path = "/chat/completions"
    answers = "chat completions"
    prompt = "messages"
    shape = shapes.CHAT

    def __init__(self, request: ChatRequest, ignore: bool) -> None:
        super().__init__(request.stream, request.include_usage)
        self.request = request
        self.ignore = ignore
        self.model = request.model
        self.unknown = request.unknown
        self._images: dict[str, str] = {}

    def fit(self, model: Model) -> Fitted:
        fitted, self.links = fit_chat(self.request, model, self.ignore)
        return fitted

    async def fetch(self, fetcher: Fetcher) -> None:
        self._images = self._images or await fetcher.images(self.links)

    def estimate(self, entry: ModelEntry, first: bool) -> Estimate:
        request = self.request
        spoken = len(request.values["messages"])
        prompt = Prompt(request.prompt_bytes, messages=spoken, has_media=bool(request.spoken.media))
        return estimate_text(
            entry, (prompt,), n=request.n, wanted=request.max_tokens, maximum="max_completion_tokens", first=first
        )

    def payload(self, fitted: Fitted, entry: ModelEntry, granted: int) -> dict[str, Any]:
        body = fitted.payload
        body["model"] = entry.target.model
        limit = granted // self.request.n
        # Both names: engines know one or the other, and the smaller of two equal limits is the limit.
        body["max_completion_tokens"] = limit
        if entry.target.internal:
            body["max_tokens"] = limit
        if self.links:
            body["messages"] = list(inline(body["messages"], self._images))
        self.stream_options(entry, body)
        self.in_its_stead(fitted, self.request.n)
        return body


async def chat(gateway: "Gateway", call: Call) -> None:
    await handle(gateway, call, _ENDPOINT, lambda body, ignore: ChatWork(read_chat(body, ignore), ignore))


ROUTES = (Route("POST", "/chat/completions", chat, ("requests", "input_tokens", "output_tokens")),)
