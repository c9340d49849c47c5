"""The pods behind the reconcile's back, as `ray_link` is for applications: a slow API server holds up no pass.

A pass says what models demand; a task of its own shapes the platform again and again, and news wake the next pass.
"""

import asyncio
from collections.abc import Callable

import structlog

from tollway_operator.builders.pools import Demand
from tollway_operator.errors import Conflict, OperatorError
from tollway_operator.platform import Platform, PlatformStatus

log = structlog.get_logger(__name__)


class PlatformLink:
    """`interval` answers how many seconds may pass before the platform is looked at again."""

    def __init__(self, platform: Platform, interval: Callable[[], float], wake: Callable[[], None]) -> None:
        self._platform = platform
        self._interval = interval
        self._wake = wake
        self._demands: tuple[Demand, ...] | None = None
        self._look = asyncio.Event()
        self.status: PlatformStatus | None = None
        """As last seen; None before the first look."""
        self.error = ""

    def want(self, demands: tuple[Demand, ...]) -> None:
        """What the models that are there ask for. Not to be called before all of them are known."""
        if demands != self._demands:
            self._demands = demands
            self._look.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._look.clear()
            again = await self._shape(self._demands) if self._demands is not None else False
            try:
                async with asyncio.timeout(0.1 if again else self._interval()):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _shape(self, demands: tuple[Demand, ...]) -> bool:
        """Whether to look again at once."""
        before = (self.status, self.error)
        try:
            self.status = await self._platform.shape(demands)
            self.error = ""
        except Conflict:
            return True  # Ray's autoscaler was quicker
        except OperatorError as error:
            if str(error) != self.error:
                log.warning("platform_not_shaped", error=str(error))
            self.error = str(error)
        if before != (self.status, self.error):
            self._wake()
        return False
