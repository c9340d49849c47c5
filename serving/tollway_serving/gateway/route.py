"""What a route is. Used by `routes` to declare theirs and by `app` to find them.

`meters` names the units that a call is charged by; a route can't be declared without it, and () says "free".
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollway_serving.contract.units import Unit
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.parameters import Table

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

Handler = Callable[["Gateway", Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is behind /v1 and /api/v1, or absolute with `bare`. A trailing {name} takes the rest of the path."""

    method: str
    path: str
    handler: Handler
    meters: tuple[Unit, ...]
    bare: bool = False
    net: bool = True  # counted by the per-address net; probes are not
    request: Table | None = None  # the parameters of its JSON body: what validates them also makes /openapi.json
