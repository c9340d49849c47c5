"""The gateway's ledger: `open_ledger(url, owner)` gives a port.Ledger on SQLite or PostgreSQL.

This module joins the batcher (hot path) with the catalogue, the heartbeat and the reaper; which database it is, only
the backends know.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, overload

import sqlalchemy as sa
import structlog

from tollway_serving.ledger import catalogue, replicas, reports, tidy
from tollway_serving.ledger.backend import Backend
from tollway_serving.ledger.backends import open_backend
from tollway_serving.ledger.batch import Batcher
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.ops import (
    Begin,
    Begun,
    Cover,
    Forget,
    Kept,
    LedgerUnavailable,
    NotAgain,
    Op,
    Receipt,
    Refused,
    Reserve,
    Reserved,
    Settle,
    Stale,
)
from tollway_serving.ledger.port import CatalogueDelta
from tollway_serving.ledger.questions import Standing, Who, WindowQuery, WindowRow
from tollway_serving.ledger.transaction import Expire
from tollway_serving.ledger.version import check_version

log = structlog.get_logger(__name__)

T = TypeVar("T")

POLL_S = 0.25
BEAT_S = 5.0
CLOSE_S = 10.0
REPORT_S = 10.0
REPORTS_AT_ONCE = 2  # a replica's: customers' questions must not keep the database from their calls


class Store:
    """See port.Ledger."""

    def __init__(self, backend: Backend, database: Database, reports_database: Database, owner: str) -> None:
        self.revision = 0
        self.revision_changed = asyncio.Event()
        self._backend = backend
        self._database = database
        self._reports = reports_database
        self._reporting = asyncio.Semaphore(REPORTS_AT_ONCE)
        self._owner = owner
        self._metrics_url = ""
        self._batcher = Batcher(backend, self._seen)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._database.read(check_version)
        await self._backend.connect()
        await self.announce(self._owner, self._metrics_url)
        self._seen(await self._backend.poll())
        self._batcher.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._forever(self._poll, POLL_S), name="tollway-ledger-poll"),
            loop.create_task(self._forever(self._beat, BEAT_S), name="tollway-ledger-beat"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._batcher.close(CLOSE_S)
        with contextlib.suppress(LedgerUnavailable):
            await self._database.write(lambda connection: replicas.leave(connection, self._owner))
        await self._backend.close()
        await self._database.close()
        await self._reports.close()

    @overload
    def submit(self, op: Reserve) -> "asyncio.Future[Reserved | Refused | Stale]": ...
    @overload
    def submit(self, op: Cover) -> "asyncio.Future[None]": ...
    @overload
    def submit(self, op: Settle) -> "asyncio.Future[Receipt]": ...
    @overload
    def submit(self, op: Begin) -> "asyncio.Future[Begun | Kept | NotAgain]": ...
    @overload
    def submit(self, op: Forget) -> "asyncio.Future[None]": ...
    def submit(self, op: Op) -> "asyncio.Future[Any]":
        return self._batcher.submit(op)

    @property
    def waiting(self) -> int:
        """Operations that the database has not taken yet: a metric, and what a graceful stop looks at."""
        return self._batcher.waiting

    async def load_catalogue(self, since: int) -> CatalogueDelta:
        delta = await self._database.read(lambda connection: catalogue.changes(connection, since))
        self._seen(delta.revision)
        return delta

    async def standing(self, who: Who) -> Standing:
        return await self._report(lambda connection: reports.standing(connection, who))

    async def window_usage(self, query: WindowQuery) -> list[WindowRow]:
        return await self._report(lambda connection: reports.window_usage(connection, query))

    async def _report(self, function: Callable[[sa.Connection], T]) -> T:
        try:
            async with asyncio.timeout(REPORT_S):
                await self._reporting.acquire()
        except TimeoutError:
            raise LedgerUnavailable("too many reports at once") from None
        try:
            return await self._reports.read(function)
        finally:
            self._reporting.release()

    async def announce(self, owner: str, metrics_url: str) -> None:
        self._owner, self._metrics_url = owner, metrics_url
        await self._database.write(lambda connection: replicas.announce(connection, owner, metrics_url))

    def _seen(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self.revision_changed.set()

    async def _poll(self) -> None:
        self._seen(await self._backend.poll())

    async def _beat(self) -> None:
        await self.announce(self._owner, self._metrics_url)
        for charge_id in await self._database.read(replicas.expired_holds):
            try:
                receipt = await self._batcher.submit(Expire(charge_id))
            except LedgerUnavailable:
                raise
            except Exception as error:  # one that can't be closed must not keep the others open
                log.error("ledger.hold_not_reaped", charge_id=charge_id, error=repr(error))
                continue
            log.warning("ledger.hold_reaped", charge_id=charge_id, charged_micro=receipt.charged_micro)
        for forget in await self._database.read(tidy.left_behind):
            await self._batcher.submit(forget)
        await tidy.drop_expired_answers(self._database)

    @staticmethod
    async def _forever(step: Any, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await step()
            except LedgerUnavailable:
                pass  # the batches say so, once
            except Exception as error:  # a reaped hold that fails must not end the heartbeat
                log.error("ledger.background_failed", error=repr(error))


def open_ledger(url: str, owner: str) -> Store:
    """`url`: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE; `owner` names this gateway replica. Opens
    nothing yet: see `start`. ValueError for another kind of URL."""
    return Store(open_backend(url), Database(url), Database(url, limit_s=REPORT_S), owner)
