"""The ledger's hot path on SQLite: one writer thread with one connection of its own; used by `store`.

WAL with synchronous=FULL: a commit survives a power loss. The clock is the host's, which all processes that can open
the file share.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

import orjson

from tollway_serving.ledger import record_sql, schema
from tollway_serving.ledger.backend import Batch, EntryCache
from tollway_serving.ledger.database import PRAGMAS, begin_writing
from tollway_serving.ledger.idempotency import record_from_row
from tollway_serving.ledger.ops import LedgerUnavailable, Receipt
from tollway_serving.ledger.sql import sqlite_insert, sqlite_upsert_rollup, sqlite_upsert_subject
from tollway_serving.ledger.state import State, account_subject, decode, hold_from_row
from tollway_serving.ledger.transaction import AnyOp, EntryFacts, Subject, Work, entry_facts, needs

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

_REVISION = "select value from tollway_meta where name = 'catalogue_revision'"
_HOLD = "select * from tollway_holds where charge_id = ?"
_SUBJECT = "select state, first_key_ms from tollway_subjects where id = ?"
_RECEIPT = "select charged_micro, overrun_micro, counts from tollway_usage where charge_id = ?"
_ENTRY = "select revision, deleted, body from tollway_catalogue where kind = ? and id = ?"
_COVER = (
    "update tollway_holds set covered_output = :covered_output, covered_prompt = :covered_prompt"
    " where charge_id = :charge_id"
)
_END = "delete from tollway_holds where charge_id = ?"
_SUBJECT_UPSERT = sqlite_upsert_subject()
_OPEN = sqlite_insert(schema.holds)
_USAGE = sqlite_insert(schema.usage)
_ROLLUP = sqlite_upsert_rollup()


class SqliteBackend:
    """See backend.Backend. Every method but `close` may raise LedgerUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._entries = EntryCache()
        self._thread: threading.Thread | None = None

    async def connect(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tollway-ledger", daemon=True)
            self._thread.start()
        await self._call(self._connected)

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def transact(self, ops: Sequence[AnyOp]) -> Batch:
        batch: Batch = await self._call(lambda: self._transact(ops))
        return batch

    async def poll(self) -> int:
        return int(await self._call(lambda: self._connected().execute(_REVISION).fetchone()[0]))

    async def _call(self, function: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((function, future, loop))
        return await future

    def _work(self) -> None:
        """The thread. Errors of SQLite become LedgerUnavailable here and nowhere else; what is wrong with a row or a
        statement is passed on as it is."""
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError) as wrong:
                error = wrong
            except sqlite3.Error as failed:
                error = LedgerUnavailable(f"{type(failed).__name__}: {failed}")
                error.__cause__ = failed
                if failed.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    self._disconnect()
            except Exception as unexpected:  # handed to the waiter; the thread must live
                error = unexpected
            try:
                loop.call_soon_threadsafe(_finish, future, result, error)
            except RuntimeError:
                break  # the loop was closed under us: nobody waits any more
        self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # mode=rw: a missing file is an error, never a new and empty ledger.
            connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=rw", uri=True, isolation_level=None, cached_statements=64
            )
            try:
                for pragma in PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}")
            except sqlite3.Error:
                connection.close()
                raise
            connection.row_factory = sqlite3.Row
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _transact(self, ops: Sequence[AnyOp]) -> Batch:
        connection = self._connected()
        begin_writing(connection)
        try:
            work = self._load(connection, ops)
            results = work.run(ops)
            self._write(connection, work)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return Batch(results, work.revision)

    def _load(self, connection: sqlite3.Connection, ops: Sequence[AnyOp]) -> Work:
        wanted = needs(ops)
        now = time.time_ns() // 1_000_000
        revision = int(connection.execute(_REVISION).fetchone()[0])
        names, holds, closed = wanted.subjects, {}, {}
        for charge_id in wanted.charges:
            row = connection.execute(_HOLD, (charge_id,)).fetchone()
            if row is not None:
                hold = holds[charge_id] = hold_from_row(row)
                names.add(account_subject(hold.account))
                if hold.key_subject is not None:
                    names.add(hold.key_subject)
            elif charge_id in wanted.closing:
                receipt = connection.execute(_RECEIPT, (charge_id,)).fetchone()
                if receipt is not None:
                    closed[charge_id] = Receipt(charge_id, receipt[0], receipt[1], orjson.loads(receipt[2]))
        subjects = {}
        for name in names:
            row = connection.execute(_SUBJECT, (name,)).fetchone()
            subjects[name] = Subject(State(), None) if row is None else Subject(decode(row[0]), row[1])
        for kind, entry_id in self._entries.missing(revision, wanted.entries):
            row = connection.execute(_ENTRY, (kind, entry_id)).fetchone()
            facts: EntryFacts | None = None if row is None else entry_facts(kind, row[0], row[1], row[2])
            self._entries.put(kind, entry_id, facts)
        records = {}
        for key in wanted.records:
            row = connection.execute(record_sql.SQLITE["read"], record_sql.read_parameters(key)).fetchone()
            if row is not None:
                records[key] = record_from_row(row)
        return Work(now, revision, subjects, holds, closed, self._entries.facts, records)

    @staticmethod
    def _write(connection: sqlite3.Connection, work: Work) -> None:
        if work.changed:
            connection.executemany(_SUBJECT_UPSERT, work.subject_rows())
        if work.opened:
            connection.executemany(_OPEN, work.opened_rows())
        if work.covered:
            connection.executemany(_COVER, work.covered_rows())
        if work.ended:
            connection.executemany(_END, [(charge_id,) for charge_id in work.ended])
        if work.usage:
            connection.executemany(_USAGE, work.usage)
            connection.executemany(_ROLLUP, work.rollup_rows())
        for change in work.record_changes:
            name, parameters = record_sql.change(change)
            connection.execute(record_sql.SQLITE[name], parameters)


def _finish(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
