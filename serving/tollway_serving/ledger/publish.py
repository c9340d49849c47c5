"""The operator's side of the ledger: `open_publisher(url)` gives a port.Publisher. `tollway up` uses it likewise."""

from collections.abc import Mapping

from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger import accounts, catalogue, replicas
from tollway_serving.ledger.backend import Backend
from tollway_serving.ledger.backends import open_backend
from tollway_serving.ledger.database import Database, sqlite_path
from tollway_serving.ledger.migrate import migrate
from tollway_serving.ledger.port import AccountUsage, Replica
from tollway_serving.ledger.transaction import Expire

_MIGRATION_S = 600.0
_REPORT_S = 10.0


class DatabasePublisher:
    """See port.Publisher."""

    def __init__(self, url: str, scope: str) -> None:
        self._url = url
        self._scope = scope
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
        return await self._database.read(lambda connection: catalogue.published(connection, self._scope))

    async def publish(self, wanted: Catalogue) -> int:
        """Also raises catalogue.ScopeConflictError."""
        return await self._database.write(lambda connection: catalogue.publish(connection, self._scope, wanted))

    async def open_holds(self) -> Mapping[str, int]:
        return await self._database.read(replicas.open_holds)

    async def usage(self, accounts_: Mapping[str, str]) -> Mapping[str, AccountUsage]:
        return await self._database.read(lambda connection: accounts.usage(connection, accounts_))

    async def replicas(self) -> tuple[Replica, ...]:
        return await self._database.read(replicas.fresh)

    async def reap(self) -> int:
        expired = await self._database.read(replicas.expired_holds)
        if not expired:
            return 0
        if self._backend is None:
            self._backend = open_backend(self._url)
            await self._backend.connect()
        await self._backend.transact([Expire(charge_id) for charge_id in expired])
        return len(expired)


def open_publisher(url: str, scope: str = "default") -> DatabasePublisher:
    """`scope` names the installation: several may share a database, each is the only writer of its own entries."""
    return DatabasePublisher(url, scope)
