"""The ledger's hot path on PostgreSQL: one asyncpg connection, one transaction at a time; used by `store`.

A batch locks its subjects in id order, then reads the clock and everything else in one statement (so that both are
those of after the locks), decides in memory and writes in one statement. Session limits end what a stopped process
holds, so that the others go on.
"""

import asyncio
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import asyncpg
import orjson

from tollway_serving.ledger import record_sql
from tollway_serving.ledger.backend import Batch, EntryCache
from tollway_serving.ledger.database import LIMIT_S, POSTGRES_NOW_MS
from tollway_serving.ledger.idempotency import Key, Record, record_from_row
from tollway_serving.ledger.ops import LedgerUnavailable, Receipt
from tollway_serving.ledger.sql import postgres_write
from tollway_serving.ledger.state import Hold, State, account_subject, decode, encode, hold_from_row
from tollway_serving.ledger.transaction import (
    COVER_COLUMNS,
    HOLD_COLUMNS,
    ROLLUP_COLUMNS,
    SUBJECT_COLUMNS,
    USAGE_COLUMNS,
    AnyOp,
    Needs,
    Row,
    Subject,
    Work,
    entry_facts,
    needs,
)

SESSION = {
    "application_name": "tollway-ledger",
    "statement_timeout": "1800",
    "lock_timeout": "1500",
    # A process that was stopped in mid-transaction frees the rest before they give up waiting for its locks.
    "idle_in_transaction_session_timeout": "1000",
}

_REVISION = "select value from tollway_meta where name = 'catalogue_revision'"
_HOLDS = "select * from tollway_holds where charge_id = any($1::text[])"
_LOCK = "select id, state, first_key_ms from tollway_subjects where id = any($1::text[]) order by id for update"
_CREATE = """insert into tollway_subjects (id, state) select name, $2 from unnest($1::text[]) as name order by name
on conflict (id) do nothing"""
_READ = f"""select {POSTGRES_NOW_MS} as now, ({_REVISION}) as revision,
(select json_agg(json_build_array(charge_id, covered_output, covered_prompt)) from tollway_holds
  where charge_id = any($1::text[])) as holds,
(select json_agg(json_build_array(c.kind, c.id, c.revision, c.deleted, c.body)) from tollway_catalogue c
  join unnest($2::text[], $3::text[]) as w(kind, id) on c.kind = w.kind and c.id = w.id) as entries"""  # noqa: S608
_ENTRIES = """select json_agg(json_build_array(c.kind, c.id, c.revision, c.deleted, c.body)) from tollway_catalogue c
  join unnest($1::text[], $2::text[]) as w(kind, id) on c.kind = w.kind and c.id = w.id"""
_RECEIPTS = """select charge_id, charged_micro, overrun_micro, counts from tollway_usage
where charge_id = any($1::text[])"""
_WRITE = postgres_write()

_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_OWN_FAULT = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.SyntaxOrAccessError)


class PostgresBackend:
    """See backend.Backend. `transact` runs one at a time; `poll` has a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._connection: asyncpg.Connection | None = None
        self._poller: asyncpg.Connection | None = None
        self._entries = EntryCache()
        self._holds: dict[str, Hold] = {}  # what is known of open ones; only their coverage ever changes

    async def connect(self) -> None:
        self._connection = await self._usable(self._connection)

    async def close(self) -> None:
        for connection in (self._connection, self._poller):
            if connection is not None:
                connection.terminate()
        self._connection = self._poller = None

    async def poll(self) -> int:
        self._poller = await self._usable(self._poller)
        try:
            return int(await self._poller.fetchval(_REVISION, timeout=LIMIT_S))
        except _LOST as error:
            self._poller.terminate()
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error

    async def transact(self, ops: Sequence[AnyOp]) -> Batch:
        """Errors of the driver become LedgerUnavailable here and nowhere else; one in a row or a statement is passed
        on as it is."""
        connection = self._connection = await self._usable(self._connection)
        try:
            async with asyncio.timeout(LIMIT_S):
                while (batch := await self._attempt(connection, ops)) is None:
                    pass
                return batch
        except _OWN_FAULT:
            await self._rollback(connection)
            raise
        except _LOST as error:
            connection.terminate()
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.terminate()
            raise

    async def _usable(self, connection: Any) -> Any:
        if connection is not None and not connection.is_closed():
            return connection
        try:
            return await asyncpg.connect(
                self._url, timeout=LIMIT_S, command_timeout=LIMIT_S, server_settings=SESSION, statement_cache_size=32
            )
        except _LOST as error:
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error

    @staticmethod
    async def _rollback(connection: Any) -> None:
        try:
            await connection.execute("rollback")
        except _LOST:
            connection.terminate()

    async def _attempt(self, connection: Any, ops: Sequence[AnyOp]) -> Batch | None:
        """None: subjects were missing and are there now, or a hold turned up whose subjects were not locked."""
        wanted = needs(ops)
        await self._find_holds(connection, (wanted.charges - wanted.opening) - self._holds.keys())
        for charge_id in wanted.charges:
            hold = self._holds.get(charge_id)
            if hold is not None:
                wanted.subjects.add(account_subject(hold.account))
                if hold.key_subject is not None:
                    wanted.subjects.add(hold.key_subject)
        names = sorted(wanted.subjects)
        await connection.execute("begin")
        rows = await connection.fetch(_LOCK, names) if names else []
        if len(rows) < len(names):
            # Created outside of the transaction and in order: two processes could deadlock in it.
            await connection.execute("rollback")
            found = {row["id"] for row in rows}
            await connection.execute(_CREATE, [name for name in names if name not in found], encode(State()))
            return None
        subjects = {row["id"]: Subject(decode(row["state"]), row["first_key_ms"]) for row in rows}
        row = await self._read(connection, wanted)
        coverage = {charge_id: covered for charge_id, *covered in orjson.loads(row["holds"] or "[]")}
        surprises = coverage.keys() - self._holds.keys()
        if surprises:
            await connection.execute("rollback")
            await self._find_holds(connection, surprises)
            return None
        holds = {charge_id: _covered(self._holds[charge_id], *covered) for charge_id, covered in coverage.items()}
        closed, records = await self._read_rarer(connection, wanted, wanted.closing - holds.keys())
        revision = int(row["revision"])
        work = Work(int(row["now"]), revision, subjects, holds, closed, self._entries.facts, records)
        results = work.run(ops)
        await self._write(connection, work)
        await connection.execute("commit")
        for charge_id in wanted.charges:
            if charge_id in holds:
                self._holds[charge_id] = holds[charge_id]
            else:
                self._holds.pop(charge_id, None)
        return Batch(results, revision)

    async def _find_holds(self, connection: Any, charges: AbstractSet[str]) -> None:
        """Holds never change subjects, so what is known of them can be read before the locks."""
        for row in await connection.fetch(_HOLDS, list(charges)) if charges else ():
            self._holds[row["charge_id"]] = hold_from_row(row)

    async def _read(self, connection: Any, wanted: Needs) -> Any:
        """The row of _READ; afterwards the catalogue's entries are those of its revision."""
        missing = self._entries.missing(self._entries.revision, wanted.entries)
        row = await connection.fetchrow(
            _READ, list(wanted.charges), [kind for kind, _ in missing], [entry_id for _, entry_id in missing]
        )
        revision, entries = int(row["revision"]), row["entries"]
        if revision != self._entries.revision:
            missing = self._entries.missing(revision, wanted.entries)
            entries = await connection.fetchval(_ENTRIES, [kind for kind, _ in missing], [name for _, name in missing])
        self._put_entries(missing, entries)
        return row

    @staticmethod
    async def _read_rarer(
        connection: Any, wanted: Needs, gone: AbstractSet[str]
    ) -> tuple[dict[str, Receipt], dict[Key, Record]]:
        closed, records = {}, {}
        for receipt in await connection.fetch(_RECEIPTS, list(gone)) if gone else ():
            charge_id, charged, overrun, counts = receipt
            closed[charge_id] = Receipt(charge_id, charged, overrun, orjson.loads(counts))
        text, names = record_sql.POSTGRES["read"]
        for key in wanted.records:
            parameters = record_sql.read_parameters(key)
            found = await connection.fetchrow(text, *(parameters[name] for name in names))
            if found is not None:
                records[key] = record_from_row(found)
        return closed, records

    def _put_entries(self, missing: Iterable[tuple[str, str]], text: str | None) -> None:
        found = {(kind, name): rest for kind, name, *rest in orjson.loads(text or "[]")}
        for where in missing:
            rest = found.get(where)
            self._entries.put(*where, None if rest is None else entry_facts(where[0], *rest))

    @staticmethod
    async def _write(connection: Any, work: Work) -> None:
        if work.changed or work.covered:
            rows = (
                _json(SUBJECT_COLUMNS, work.subject_rows()),
                _json(HOLD_COLUMNS, work.opened_rows()),
                _json(COVER_COLUMNS, work.covered_rows()),
                _json(ROLLUP_COLUMNS, work.rollup_rows()),
                _json(USAGE_COLUMNS, work.usage),
            )
            await connection.execute(_WRITE, *rows, work.ended)
        for change in work.record_changes:
            name, parameters = record_sql.change(change)
            text, names = record_sql.POSTGRES[name]
            await connection.execute(text, *(parameters[each] for each in names))


def _json(columns: tuple[str, ...], rows: list[Row]) -> str:
    return orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows]).decode()


def _covered(hold: Hold, output: int, prompt: int | None) -> Hold:
    if (output, prompt) == (hold.covered_output, hold.covered_prompt):
        return hold
    return replace(hold, covered_output=output, covered_prompt=prompt)
