"""One level-triggered pass over the whole world, and the loop around it: started by `tollway up` and `tollway operator`.

Everything is gathered into a frozen `Observed`, pure builders say what should exist, a plan says what to change and
why, one executor applies it, pure checks compute the statuses.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tollway_operator.ports import AppStatus, Kind, Objects, Ray
from tollway_operator.settings import Settings
from tollway_serving.ledger.port import Publisher


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass found and did; handed to `on_progress` after every pass, also after one with errors."""

    statuses: Mapping[tuple[Kind, str, str], Mapping[str, Any]] = field(default_factory=dict)
    """The wanted `.status` of every object, by (kind, namespace, name)."""

    gateway: AppStatus | None = None
    """The gateway's application as Ray reports it; None while Ray is unreachable or doesn't have it yet."""

    settled: bool = False
    """Nothing is in transition: the gateway runs and every object is ready or says why it can't be."""

    details: tuple[str, ...] = ()
    """What this pass changed and why, one line each."""

    errors: tuple[str, ...] = ()
    """What didn't work and will be tried again, one line each."""


OnProgress = Callable[[Progress], None]


async def run(
    objects: Objects,
    ray: Ray,
    publisher: Publisher,
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_progress: OnProgress | None = None,
) -> None:
    """Reconciles until `stop` is set; returns once the pass in progress is finished. The publisher must be started.

    Raises nothing that a pass may run into: errors are logged, reported in `Progress` and tried again.
    """
    raise NotImplementedError
