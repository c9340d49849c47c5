"""GET /healthz and GET /readyz: for probes; no key, no charge."""

from typing import TYPE_CHECKING

from tollway_serving.gateway.call import Call
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.route import Route

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway


async def healthz(gateway: "Gateway", call: Call) -> None:
    """Alive: the event loop answers."""
    await call.respond(200, b'{"status":"ok"}')


async def readyz(gateway: "Gateway", call: Call) -> None:
    """Ready: the ledger answers and a catalogue is loaded."""
    if gateway.draining:
        raise ApiError("model_unavailable", "This replica is shutting down.", retry_after_s=1)
    if not gateway.catalogue.loaded or not await gateway.ledger_answers():
        raise ledger_unavailable()
    await call.respond(200, b'{"status":"ready"}')


ROUTES = (
    Route("GET", "/healthz", healthz, (), bare=True, net=False),
    Route("GET", "/readyz", readyz, (), bare=True, net=False),
)
