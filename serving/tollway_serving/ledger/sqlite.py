"""The ledger's hot path on SQLite: one writer thread with one connection of its own; used by `store`.

WAL with synchronous=FULL: a commit survives a power loss. The clock is the host's, which all processes that can open
the file share. A statement gives the interpreter's lock away several times, and each time may wake the event loop's
thread: so a transaction has few of them, and reads only what the ones before it have not left in memory.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

import orjson

from tollway_serving.ledger import record_sql
from tollway_serving.ledger.backend import Batch, EntryCache
from tollway_serving.ledger.database import BUSY_STEP_MS, PRAGMAS, begin_writing, patiently
from tollway_serving.ledger.idempotency import record_from_row
from tollway_serving.ledger.ops import LedgerUnavailable, Receipt
from tollway_serving.ledger.sql import sqlite_insert
from tollway_serving.ledger.state import Hold, State, account_subject, decode, hold_from_row
from tollway_serving.ledger.transaction import AnyOp, EntryFacts, Row, Subject, Work, entry_facts, needs

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

_REVISION = "select value from tollway_meta where name = 'catalogue_revision'"
_LISTED = "(select value from json_each(?))"
_HOLDS = f"select * from tollway_holds where charge_id in {_LISTED}"  # noqa: S608 - no values, like the next ones
_SUBJECTS = f"select id, state, first_key_ms from tollway_subjects where id in {_LISTED}"  # noqa: S608
_RECEIPTS = f"select charge_id, charged_micro, overrun_micro, counts from tollway_usage where charge_id in {_LISTED}"  # noqa: S608
_ENTRY = "select revision, deleted, body from tollway_catalogue where kind = ? and id = ?"
_COVER = "update tollway_holds set covered_output = ?2, covered_prompt = ?3 where charge_id = ?1"
_END = f"delete from tollway_holds where charge_id in {_LISTED}"  # noqa: S608

_ROWS_AT_ONCE = 32  # each number up to it is a statement of its own, prepared once
_REMEMBERED = 4_000  # subjects, and as many holds: some tens of megabytes


@dataclass(slots=True)
class _Memory:
    """What the transactions of one connection have read and written so far, as it is in the file.

    It is right while `version` is SQLite's data_version, which any commit of another connection changes, and is thrown
    away with whatever was not committed. The subjects of a remembered hold are remembered, too.
    """

    version: int
    revision: int
    subjects: dict[str, Subject] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.subjects) > _REMEMBERED or len(self.holds) > _REMEMBERED


class SqliteBackend:
    """See backend.Backend. Every method but `close` may raise LedgerUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._memory: _Memory | None = None
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
        return int(await self._call(lambda: patiently(lambda: _one(self._connected(), _REVISION))))

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
                f"file:{quote(str(self._path))}?mode=rw", uri=True, isolation_level=None, cached_statements=256
            )
            try:
                for pragma in (*PRAGMAS, f"busy_timeout={BUSY_STEP_MS}"):
                    connection.execute(f"PRAGMA {pragma}")
            except sqlite3.Error:
                connection.close()
                raise
            connection.row_factory = sqlite3.Row
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection, self._memory = self._connection, None, None
            connection.close()

    def _transact(self, ops: Sequence[AnyOp]) -> Batch:
        connection = self._connected()
        begin_writing(connection)
        try:
            work = self._load(connection, ops)
            results = work.run(ops)
            for text, parameters in _statements(work):
                connection.execute(text, parameters)
            connection.execute("COMMIT")
        except BaseException:
            self._memory = None
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return Batch(results, work.revision)

    def _remembered(self, connection: sqlite3.Connection) -> _Memory:
        """Asked within the transaction: nobody else commits before its end."""
        version, memory = _one(connection, "PRAGMA data_version"), self._memory
        if memory is None or memory.version != version or memory.full:
            memory = self._memory = _Memory(version, _one(connection, _REVISION))
        return memory

    def _load(self, connection: sqlite3.Connection, ops: Sequence[AnyOp]) -> Work:
        wanted, now = needs(ops), time.time_ns() // 1_000_000
        memory, closed, records = self._remembered(connection), {}, {}
        unknown = wanted.charges - memory.holds.keys()
        if unknown:
            for row in connection.execute(_HOLDS, (_list(unknown),)):
                hold = memory.holds[row["charge_id"]] = hold_from_row(row)
                wanted.subjects.add(account_subject(hold.account))
                if hold.key_subject is not None:
                    wanted.subjects.add(hold.key_subject)
            gone = wanted.closing - memory.holds.keys()
            for charge_id, charged, overrun, counts in connection.execute(_RECEIPTS, (_list(gone),)) if gone else ():
                closed[charge_id] = Receipt(charge_id, charged, overrun, orjson.loads(counts))
        missing = wanted.subjects - memory.subjects.keys()
        if missing:
            memory.subjects.update({name: Subject(State(), None) for name in missing})
            for name, state, first_key_ms in connection.execute(_SUBJECTS, (_list(missing),)):
                memory.subjects[name] = Subject(decode(state), first_key_ms)
        for kind, entry_id in self._entries.missing(memory.revision, wanted.entries):
            row = connection.execute(_ENTRY, (kind, entry_id)).fetchone()
            facts: EntryFacts | None = None if row is None else entry_facts(kind, row[0], row[1], row[2])
            self._entries.put(kind, entry_id, facts)
        for key in wanted.records:
            row = connection.execute(record_sql.SQLITE["read"], record_sql.read_parameters(key)).fetchone()
            if row is not None:
                records[key] = record_from_row(row)
        return Work(now, memory.revision, memory.subjects, memory.holds, closed, self._entries.facts, records)


def _statements(work: Work) -> list[tuple[str, Any]]:
    """All made before the first is executed: see the module."""
    made = [
        *_inserts("subjects", work.subject_rows()),
        *_inserts("opened", work.opened_rows()),
        *_inserts("usage", work.usage),
        *_inserts("rollups", work.rollup_rows()),
        *((_COVER, row) for row in work.covered_rows()),
    ]
    if work.ended:
        made.append((_END, (_list(work.ended),)))
    for change in work.record_changes:
        name, parameters = record_sql.change(change)
        made.append((record_sql.SQLITE[name], parameters))
    return made


def _inserts(what: str, rows: list[Row]) -> Iterator[tuple[str, Any]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        yield sqlite_insert(what, len(part)), list(chain.from_iterable(part))


def _list(ids: Iterable[str]) -> str:
    return orjson.dumps(list(ids)).decode()


def _one(connection: sqlite3.Connection, question: str) -> int:
    return int(connection.execute(question).fetchone()[0])


def _finish(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
