"""The operator's side of the ledger: `open_publisher(url)` gives a port.Publisher. `tollway up` uses it likewise."""

import time
from collections.abc import Mapping

import structlog

from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger import accounts, catalogue, replicas, tidy
from tollway_serving.ledger.backend import Backend
from tollway_serving.ledger.backends import open_backend
from tollway_serving.ledger.database import Database, sqlite_path
from tollway_serving.ledger.migrate import migrate
from tollway_serving.ledger.port import AccountUsage, Replica
from tollway_serving.ledger.transaction import AnyOp, Expire

_MIGRATION_S = 600.0
_REPORT_S = 10.0
_USAGE_CHECK_S = 600.0

log = structlog.get_logger(__name__)


class DatabasePublisher:
    """See port.Publisher."""

    def __init__(self, url: str, scope: str, usage_days: int | None) -> None:
        self._url = url
        self._scope = scope
        self._usage_days = usage_days
        self._usage_checked = 0.0
        self._known: catalogue.Known | None = None  # what the last publish left
        self._database = Database(url, limit_s=_REPORT_S)
        self._backend: Backend | None = None

    async def start(self) -> None:
        path = sqlite_path(self._url)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        migrating = Database(self._url, limit_s=_MIGRATION_S, create=True)
        try:
            await migrating.write(migrate)
        finally:
            await migrating.close()

    async def close(self) -> None:
        if self._backend is not None:
            await self._backend.close()
        await self._database.close()

    async def published(self) -> Catalogue:
        self._known = None  # who reads anew wants the next publish to compare anew, too
        return await self._database.read(lambda connection: catalogue.published(connection, self._scope))

    async def publish(self, wanted: Catalogue) -> int:
        """Also raises catalogue.ScopeConflictError."""
        known, self._known = self._known, None  # should it fail, nobody knows
        self._known = await self._database.write(
            lambda connection: catalogue.publish(connection, self._scope, wanted, known)
        )
        return self._known.revision

    async def open_holds(self) -> Mapping[str, int]:
        return await self._database.read(replicas.open_holds)

    async def usage(self, accounts_: Mapping[str, str]) -> Mapping[str, AccountUsage]:
        return await self._database.read(lambda connection: accounts.usage(connection, accounts_))

    async def replicas(self) -> tuple[Replica, ...]:
        return await self._database.read(replicas.fresh)

    async def reap(self) -> int:
        """Also drops single calls that are older than `usage_days`, a part of them at a time."""
        expired = [Expire(charge_id) for charge_id in await self._database.read(replicas.expired_holds)]
        ops: list[AnyOp] = [*expired, *await self._database.read(tidy.left_behind)]
        if ops:
            if self._backend is None:
                self._backend = open_backend(self._url)
                await self._backend.connect()
            await self._backend.transact(ops)
        await tidy.drop_expired_answers(self._database)
        await self._drop_usage()
        return len(expired)

    async def _drop_usage(self) -> None:
        days = self._usage_days
        if days is None or time.monotonic() < self._usage_checked + _USAGE_CHECK_S:
            return
        dropped = await self._database.write(lambda connection: tidy.drop_usage(connection, days))
        if dropped:
            log.info("ledger.usage_dropped", calls=dropped, days=days)
        else:
            self._usage_checked = time.monotonic()


def open_publisher(url: str, scope: str = "default", usage_days: int | None = None) -> DatabasePublisher:
    """`scope` names the installation: several may share a database, each is the only writer of its own entries. Single
    calls are kept for `usage_days` (None: for ever), at least tidy.MIN_USAGE_DAYS."""
    return DatabasePublisher(url, scope, usage_days)
