"""A `Publisher` that may not be reachable yet: `main` gives it to the reconcile, which then can say so in conditions.

The first call that reaches the database migrates it; until then every call raises LedgerUnavailable, as the ledger's
own do when it goes away later.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import AccountUsage, Publisher, Replica

_PAUSE = 2.0  # seconds between tries, however often it is asked

_log = structlog.get_logger()


class LedgerLink:
    """See `Publisher`; `start` never fails. Nothing is published while `may_write` says no: a replica that lost its
    Lease while it was frozen must not bring back what its successor revoked."""

    def __init__(self, publisher: Publisher, may_write: Callable[[], bool]) -> None:
        self._publisher = publisher
        self._may_write = may_write
        self._lock = asyncio.Lock()
        self._started = False
        self._failed: tuple[float, LedgerUnavailable] | None = None

    async def start(self) -> None:
        try:
            await self._ready()
        except LedgerUnavailable as error:
            _log.warning("ledger_unreachable", error=str(error))

    async def close(self) -> None:
        await self._publisher.close()

    async def published(self) -> Catalogue:
        return await (await self._ready()).published()

    async def publish(self, wanted: Catalogue) -> int:
        publisher = await self._ready()
        if not self._may_write():
            raise LedgerUnavailable("another replica holds the Lease now")
        return await publisher.publish(wanted)

    async def open_holds(self) -> Mapping[str, int]:
        return await (await self._ready()).open_holds()

    async def usage(self, accounts: Mapping[str, str]) -> Mapping[str, AccountUsage]:
        return await (await self._ready()).usage(accounts)

    async def replicas(self) -> tuple[Replica, ...]:
        """Also without having migrated: an operator in waiting answers Prometheus, too."""
        return await self._publisher.replicas()

    async def reap(self) -> int:
        return await (await self._ready()).reap()

    async def _ready(self) -> Publisher:
        async with self._lock:
            if not self._started:
                if self._failed is not None and time.monotonic() - self._failed[0] < _PAUSE:
                    raise LedgerUnavailable(str(self._failed[1]))
                try:
                    await self._publisher.start()
                except LedgerUnavailable as error:
                    self._failed = (time.monotonic(), error)
                    raise
                self._started = True
                _log.info("ledger_ready")
        return self._publisher
