"""A request to a model from its body to its answer: the same steps for every such route. Called by `routes`.

The route says how its body is read and what it wants of a model (`ModelWork`); here is who may, which model, and what
happens when the catalogue changes meanwhile.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tollway_serving.contract.catalogue import Endpoint
from tollway_serving.gateway.admission import CatalogueMoved
from tollway_serving.gateway.call import IDEMPOTENCY_KEY, Call, Header
from tollway_serving.gateway.catalogue import Access, Model
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.fallback import Opened, Work
from tollway_serving.gateway.once import once
from tollway_serving.gateway.parameters import ignored_header
from tollway_serving.gateway.routes.models import model_not_found
from tollway_serving.ledger.ops import LedgerUnavailable

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_TRIES = 4  # a catalogue that changes faster than this can be loaded is an outage


class ModelWork(Work, Protocol):
    """A valid request."""

    answers: str  # what a model of this endpoint does: "does not answer …"
    model: str | None  # as the client asked
    unknown: tuple[str, ...]  # names that are ignored whatever the model is

    async def send(self, call: Call, opened: Opened, headers: list[Header]) -> None:
        """Settles and answers."""


async def handle(gateway: "Gateway", call: Call, endpoint: Endpoint, read: Callable[[Any, bool], ModelWork]) -> None:
    """`read` takes the parsed body and whether unsupported parameters are ignored; ApiError for a bad one."""
    access = gateway.authenticate(call, endpoint)
    body = await call.json(gateway.settings.max_body_bytes, gateway.settings.body_timeout_s)
    work = read(body, gateway.ignores_unsupported(call, access))
    if work.streamed:
        call.keep_alive(gateway.settings.heartbeat_s)
    if call.header(IDEMPOTENCY_KEY) is not None:
        await once(gateway, call, access, work.streamed, lambda: _answer(gateway, call, access, endpoint, work))
        return
    call.watch()
    await _answer(gateway, call, access, endpoint, work)


async def _answer(gateway: "Gateway", call: Call, access: Access, endpoint: Endpoint, work: ModelWork) -> None:
    for _ in range(_TRIES):
        model = _choose(gateway, call, access, work)
        try:
            opened = await gateway.fallbacks.open(call, access, model, work)
        except CatalogueMoved as moved:
            try:
                await gateway.catalogue.catch_up(moved.revision)
            except LedgerUnavailable:
                raise ledger_unavailable() from None
            access = gateway.authenticate(call, endpoint)
            continue
        try:
            call.model = opened.entry.model_id
            headers: list[Header] = opened.charge.headers(opened.entry.model_id)
            if ignored := (*work.unknown, *opened.ignored):
                headers.append((b"x-ignored-parameters", ignored_header(ignored)))
            await work.send(call, opened, headers)
        finally:
            opened.close()
        return
    raise ledger_unavailable()


def _choose(gateway: "Gateway", call: Call, access: Access, work: ModelWork) -> Model:
    """The model asked for, or the plan's default."""
    name = work.model or access.plan.default_models.get(work.endpoint)
    if name is None:
        raise ApiError("missing_required_parameter", "Missing required parameter: 'model'.", param="model")
    model = gateway.catalogue.model(access, name)
    if model is None:
        raise model_not_found(name)
    call.model = model.entry.model_id
    if work.endpoint not in model.entry.endpoints:
        raise ApiError(
            "invalid_value", f"The model '{model.entry.model_id}' does not answer {work.answers}.", param="model"
        )
    return model
