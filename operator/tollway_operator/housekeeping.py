"""The ledger's upkeep behind the passes: abandoned holds are closed, usage is read for statuses. Run by `reconcile`.

Everything that is asked of the ledger has a time limit: one that hangs must not hold up a pass.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from tollway_operator.errors import OperatorError
from tollway_operator.execute import describe
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import AccountUsage, Publisher

log = structlog.get_logger(__name__)

_LIMIT = 10.0  # seconds for an answer of the ledger
_REAP_INTERVAL = 5.0


class Housekeeping:
    """`accounts` answers the plan of each account that has a key, `wake` is called when `usage` has changed, which is
    read every `usage_interval` seconds."""

    def __init__(
        self,
        publisher: Publisher,
        accounts: Callable[[], Mapping[str, str]],
        usage_interval: float,
        wake: Callable[[], None],
    ) -> None:
        self.usage: Mapping[str, AccountUsage] = {}
        self._publisher = publisher
        self._accounts = accounts
        self._usage_interval = usage_interval
        self._wake = wake

    async def run(self) -> None:
        """Until cancelled."""
        usage_at = 0.0
        while True:
            try:
                await in_time(self._publisher.reap())
                if time.monotonic() >= usage_at and (accounts := self._accounts()):
                    usage = await in_time(self._publisher.usage(accounts))
                    usage_at = time.monotonic() + self._usage_interval
                    if usage != self.usage:
                        self.usage = usage
                        self._wake()
            except (LedgerUnavailable, TimeoutError, OperatorError) as error:
                log.debug("housekeeping_failed", error=describe(error))
            except Exception:
                log.exception("housekeeping_failed")
            await asyncio.sleep(_REAP_INTERVAL)


async def in_time(call: Coroutine[Any, Any, Any]) -> Any:
    """TimeoutError for a ledger that is silent."""
    async with asyncio.timeout(_LIMIT):
        return await call
