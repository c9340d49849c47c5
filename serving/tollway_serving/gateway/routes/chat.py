"""POST /chat/completions: charged by prompt and completion tokens."""

from typing import TYPE_CHECKING, Any

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway.admission import CatalogueMoved, Estimate, estimate_text
from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.catalogue import Access, Model
from tollway_serving.gateway.chat_schema import ChatRequest, fit_chat, read_chat
from tollway_serving.gateway.collect import collect
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.parameters import Fitted, ignored_header
from tollway_serving.gateway.relay import Peeked, Stream, peek_stream, peek_whole, send_whole
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.routes.models import model_not_found
from tollway_serving.gateway.upstream import Answer
from tollway_serving.ledger.ops import LedgerUnavailable

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_ENDPOINT: Endpoint = "ChatCompletions"
_TRIES = 4  # a catalogue that changes faster than this can be loaded is an outage


class ChatWork:
    """A chat request as `fallback` asks for it, model by model."""

    endpoint: Endpoint = _ENDPOINT
    path = "/chat/completions"

    def __init__(self, request: ChatRequest, ignore: bool) -> None:
        self.request = request
        self.ignore = ignore
        self.streamed = request.stream

    def fit(self, model: Model) -> Fitted:
        return fit_chat(self.request, model, self.ignore)

    def estimate(self, entry: ModelEntry, first: bool) -> Estimate:
        request = self.request
        return estimate_text(
            entry,
            text_bytes=request.prompt_bytes,
            messages=request.messages,
            has_media=bool(request.media),
            n=request.n,
            wanted=request.max_tokens,
            first=first,
        )

    def payload(self, fitted: Fitted, entry: ModelEntry, granted: int) -> dict[str, Any]:
        body = fitted.payload
        body["model"] = entry.target.model
        limit = granted // self.request.n
        # Both names: engines know one or the other, and the smaller of two equal limits is the limit.
        body["max_completion_tokens"] = limit
        if entry.target.internal:
            body["max_tokens"] = limit
        if self.streamed or _collects(entry):
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
            if entry.target.continuous_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        return body

    def patience_ms(self, entry: ModelEntry) -> int:
        return entry.timeouts.first_byte_ms if self.streamed or _collects(entry) else entry.timeouts.total_ms

    async def peek(self, entry: ModelEntry, answer: Answer) -> Any:
        if self.streamed or answer.content_type == "text/event-stream":
            return await peek_stream(entry, answer)
        return await peek_whole(entry, answer)

    async def complete(self, entry: ModelEntry, answer: Answer, peeked: Any, meter: Meter) -> Any:
        return await collect(entry, answer, peeked, meter) if isinstance(peeked, Peeked) else peeked


def _collects(entry: ModelEntry) -> bool:
    """Whether an answer that the client wants whole is asked for as a stream; see `collect`."""
    return entry.target.internal and entry.target.continuous_usage


async def chat(gateway: "Gateway", call: Call) -> None:
    access = gateway.authenticate(call, _ENDPOINT)
    body = await call.json(gateway.settings.max_body_bytes, gateway.settings.body_timeout_s)
    ignore = gateway.ignores_unsupported(call, access)
    request = read_chat(body, ignore)
    work = ChatWork(request, ignore)
    call.watch()
    for _ in range(_TRIES):
        model = _choose(gateway, call, access, request)
        try:
            opened = await gateway.fallbacks.open(call, access, model, work)
        except CatalogueMoved as moved:
            try:
                await gateway.catalogue.catch_up(moved.revision)
            except LedgerUnavailable:
                raise ledger_unavailable() from None
            access = gateway.authenticate(call, _ENDPOINT)
            continue
        try:
            call.model = opened.entry.model_id
            headers: list[Header] = opened.charge.headers(opened.entry.model_id)
            if ignored := (*request.unknown, *opened.ignored):
                headers.append((b"x-ignored-parameters", ignored_header(ignored)))
            if request.stream:
                await Stream(call, opened, headers, request.include_usage).run()
            else:
                await send_whole(call, opened, headers)
        finally:
            opened.close()
        return
    raise ledger_unavailable()


def _choose(gateway: "Gateway", call: Call, access: Access, request: ChatRequest) -> Model:
    """The model asked for, or the plan's default."""
    name = request.model or access.plan.default_models.get(_ENDPOINT)
    if name is None:
        raise ApiError("missing_required_parameter", "Missing required parameter: 'model'.", param="model")
    model = gateway.catalogue.model(access, name)
    if model is None:
        raise model_not_found(name)
    call.model = model.entry.model_id
    if _ENDPOINT not in model.entry.endpoints:
        raise ApiError(
            "invalid_value", f"The model '{model.entry.model_id}' does not answer chat completions.", param="model"
        )
    return model


ROUTES = (Route("POST", "/chat/completions", chat, ("requests", "input_tokens", "output_tokens")),)
