"""The ledger's hot path on PostgreSQL: one asyncpg connection, one transaction at a time; used by `store`.

A batch locks its subjects in id order, then reads the clock and everything else in one statement (so that both are
those of after the locks), decides in memory and writes in one statement. Session limits end what a stopped process
holds, so that the others go on.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import orjson

from tollway_serving.ledger import record_sql
from tollway_serving.ledger.backend import Batch, EntryCache
from tollway_serving.ledger.database import LIMIT_S, POSTGRES_NOW_MS
from tollway_serving.ledger.idempotency import record_from_row
from tollway_serving.ledger.ops import Cover, LedgerUnavailable, Receipt, Settle
from tollway_serving.ledger.sql import postgres_write
from tollway_serving.ledger.state import Hold, State, account_subject, decode, encode, hold_from_row
from tollway_serving.ledger.transaction import AnyOp, Expire, Needs, Row, Subject, Work, entry_facts, needs

SESSION = {
    "application_name": "tollway-ledger",
    "statement_timeout": "1800",
    "lock_timeout": "1500",
    # A process that was stopped in mid-transaction frees the rest before they give up waiting for its locks.
    "idle_in_transaction_session_timeout": "1000",
}

_REVISION = "select value from tollway_meta where name = 'catalogue_revision'"
_SUBJECTS_OF = "select charge_id, account, key_subject from tollway_holds where charge_id = any($1::text[])"
_LOCK = "select id, state, first_key_ms from tollway_subjects where id = any($1::text[]) order by id for update"
_CREATE = """insert into tollway_subjects (id, state) select name, $2 from unnest($1::text[]) as name order by name
on conflict (id) do nothing"""
_READ = f"""select {POSTGRES_NOW_MS} as now, ({_REVISION}) as revision,
(select json_agg(h) from tollway_holds h where charge_id = any($1::text[])) as holds,
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
        self._subjects_of: dict[str, tuple[str, str | None]] = {}

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
        await self._find_subjects(connection, wanted)
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
        work = await self._read(connection, wanted, subjects)
        surprises = [hold for hold in work.holds.values() if not subjects.keys() >= set(_names(hold))]
        if surprises:
            await connection.execute("rollback")
            self._subjects_of.update({hold.charge_id: (hold.account, hold.key_subject) for hold in surprises})
            return None
        results = work.run(ops)
        await self._write(connection, work)
        await connection.execute("commit")
        self._remember(ops, work)
        return Batch(results, work.revision)

    async def _find_subjects(self, connection: Any, wanted: Needs) -> None:
        """Holds never change subjects, so what is known of them can be read before the locks."""
        unknown = [charge_id for charge_id in wanted.closing if charge_id not in self._subjects_of]
        unknown += [charge_id for charge_id in wanted.covering if charge_id not in self._subjects_of]
        if unknown:
            for row in await connection.fetch(_SUBJECTS_OF, unknown):
                self._subjects_of[row["charge_id"]] = (row["account"], row["key_subject"])
        for charge_id in wanted.charges:
            known = self._subjects_of.get(charge_id)
            if known is not None:
                wanted.subjects.add(account_subject(known[0]))
                if known[1] is not None:
                    wanted.subjects.add(known[1])

    async def _read(self, connection: Any, wanted: Needs, subjects: dict[str, Subject]) -> Work:
        missing = self._entries.missing(self._entries.revision, wanted.entries)
        row = await connection.fetchrow(
            _READ, list(wanted.charges), [kind for kind, _ in missing], [entry_id for _, entry_id in missing]
        )
        revision = int(row["revision"])
        entries = row["entries"]
        if revision != self._entries.revision:
            missing = self._entries.missing(revision, wanted.entries)
            entries = await connection.fetchval(_ENTRIES, [kind for kind, _ in missing], [name for _, name in missing])
        self._put_entries(missing, entries)
        holds = {each["charge_id"]: hold_from_row(each) for each in orjson.loads(row["holds"] or "[]")}
        closed = {}
        gone = [charge_id for charge_id in wanted.closing if charge_id not in holds]
        for receipt in await connection.fetch(_RECEIPTS, gone) if gone else ():
            charge_id, charged, overrun, counts = receipt
            closed[charge_id] = Receipt(charge_id, charged, overrun, orjson.loads(counts))
        records = {}
        text, names = record_sql.POSTGRES["read"]
        for key in wanted.records:
            parameters = record_sql.read_parameters(key)
            found = await connection.fetchrow(text, *(parameters[name] for name in names))
            if found is not None:
                records[key] = record_from_row(found)
        return Work(int(row["now"]), revision, subjects, holds, closed, self._entries.facts, records)

    def _put_entries(self, missing: Iterable[tuple[str, str]], text: str | None) -> None:
        found = {(kind, name): rest for kind, name, *rest in orjson.loads(text or "[]")}
        for where in missing:
            rest = found.get(where)
            self._entries.put(*where, None if rest is None else entry_facts(where[0], *rest))

    @staticmethod
    async def _write(connection: Any, work: Work) -> None:
        if work.changed or work.covered:
            rows = (work.subject_rows(), work.opened_rows(), work.covered_rows(), work.rollup_rows(), work.usage)
            await connection.execute(_WRITE, *(_json(each) for each in rows), work.ended)
        for change in work.record_changes:
            name, parameters = record_sql.change(change)
            text, names = record_sql.POSTGRES[name]
            await connection.execute(text, *(parameters[each] for each in names))

    def _remember(self, ops: Sequence[AnyOp], work: Work) -> None:
        for charge_id, hold in work.opened.items():
            self._subjects_of[charge_id] = (hold.account, hold.key_subject)
        for charge_id in work.closed:
            self._subjects_of.pop(charge_id, None)
        for op in ops:
            if isinstance(op, Cover | Settle | Expire) and op.charge_id not in work.holds:
                self._subjects_of.pop(op.charge_id, None)


def _json(rows: list[Row]) -> str:
    return orjson.dumps(rows).decode() if rows else "[]"


def _names(hold: Hold) -> tuple[str, ...]:
    account = account_subject(hold.account)
    return (account,) if hold.key_subject is None else (account, hold.key_subject)
