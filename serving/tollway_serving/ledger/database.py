"""SQLAlchemy Core connections for everything off the hot path: migrations, the catalogue, usage, grants, verify.

One function works on a plain `Connection` for both databases: SQLite runs it in a thread, PostgreSQL through asyncpg.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tollway_serving.ledger.ops import LedgerUnavailable

T = TypeVar("T")

LIMIT_S = 2.0
"""Within this time a call on the ledger succeeds or is LedgerUnavailable."""

REPORT_LIMIT_S = 6 * 3600.0
"""The same for reports over all rows, which nobody's request waits for."""

BUSY_MS = 1_500
"""How long SQLite waits for another process's transaction."""

BUSY_STEP_MS = 2

POSTGRES_NOW_MS = "(extract(epoch from clock_timestamp()) * 1000)::bigint"

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}")


def sqlite_path(url: str) -> Path | None:
    """The file of a `sqlite:///abs/path/ledger.db`, which is always absolute; None for PostgreSQL. ValueError for the
    rest."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.strip("/"):
        return Path("/" + rest.lstrip("/"))
    if scheme in ("postgresql", "postgres"):
        return None
    raise ValueError("a database URL is sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE")


class Database:
    """`read` and `write` run a function in one transaction. Raises LedgerUnavailable for what the database does."""

    def __init__(self, url: str, *, limit_s: float = LIMIT_S, create: bool = False) -> None:
        """`limit_s` bounds a whole call; reports over many rows take longer than requests. Only who migrates may
        create a SQLite file: for the others a missing one is LedgerUnavailable."""
        self._limit_s = limit_s
        self._path = sqlite_path(url)
        self._sync: sa.Engine | None = None
        self._async: AsyncEngine | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        if self._path is not None:
            self._sync = _sqlite_engine(self._path, create)
        else:
            self._async = _postgres_engine(url, limit_s)

    @property
    def dialect(self) -> str:
        return "sqlite" if self._sync is not None else "postgresql"

    async def read(self, function: Callable[[sa.Connection], T]) -> T:
        return await self._run(function, "DEFERRED")

    async def write(self, function: Callable[[sa.Connection], T]) -> T:
        return await self._run(function, "IMMEDIATE")

    async def _run(self, function: Callable[[sa.Connection], T], mode: str) -> T:
        call = (
            asyncio.to_thread(self._in_thread, function, mode) if self._async is None else self._on_postgres(function)
        )
        task = asyncio.ensure_future(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._limit_s)
        if not done:
            # Not awaited: on a silent network its rollback takes as long as the statement did.
            task.cancel()
            raise LedgerUnavailable("no answer in time")
        try:
            return task.result()
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError, TimeoutError, sqlite3.Error) as error:
            if isinstance(error, sa.exc.IntegrityError):
                raise
            cause = getattr(error, "orig", error)
            raise LedgerUnavailable(f"{type(cause).__name__}: {cause}") from error

    def _ended(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody may wait for it any more

    async def _on_postgres(self, function: Callable[[sa.Connection], T]) -> T:
        assert self._async is not None  # noqa: S101 - for the type checker
        async with self._async.begin() as connection:
            return await connection.run_sync(function)

    def _in_thread(self, function: Callable[[sa.Connection], T], mode: str) -> T:
        assert self._sync is not None  # noqa: S101 - for the type checker
        with self._sync.connect().execution_options(sqlite_mode=mode) as connection, connection.begin():
            return function(connection)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limit_s)
        if self._async is not None:
            await self._async.dispose()
        if self._sync is not None:
            self._sync.dispose()


def now_ms(connection: sa.Connection) -> int:
    """The database's clock: the only one that decides anything."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1_000_000  # the host's clock is what all processes with the file share
    return int(connection.execute(sa.text(f"select {POSTGRES_NOW_MS}")).scalar_one())


def in_snapshot(connection: sa.Connection) -> None:
    """All reads of this transaction see one moment; to be called before the first. SQLite's always do."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("set transaction isolation level repeatable read, read only"))


def begin_writing(connection: sqlite3.Connection) -> None:
    patiently(lambda: connection.execute("BEGIN IMMEDIATE"))


def patiently(statement: Callable[[], T]) -> T:
    """Runs it until the file is free, for BUSY_MS at most, on a connection whose busy_timeout is BUSY_STEP_MS. SQLite
    itself looks again after ever longer pauses (0.1 s in the end), and so a process could wait for seconds beside
    another one that writes all the time."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            return statement()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise


def _sqlite_engine(path: Path, create: bool) -> sa.Engine:
    mode = "rwc" if create else "rw"
    address = f"sqlite:///file:{quote(str(path))}?mode={mode}&uri=true"
    engine = sa.create_engine(address, poolclass=sa.QueuePool, pool_size=2, max_overflow=2)

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if connection.get_execution_options().get("sqlite_mode") == "DEFERRED":
            driver.execute("BEGIN DEFERRED")
            return
        driver.execute(f"PRAGMA busy_timeout={BUSY_STEP_MS}")
        try:
            begin_writing(driver)
        finally:
            driver.execute(f"PRAGMA busy_timeout={BUSY_MS}")

    return engine


def _postgres_engine(url: str, limit_s: float) -> AsyncEngine:
    parsed = sa.make_url(url).set(drivername="postgresql+asyncpg")
    milliseconds = str(int(limit_s * 1000))
    return create_async_engine(
        parsed,
        pool_size=2,
        max_overflow=2,
        pool_timeout=limit_s,
        pool_pre_ping=True,
        connect_args={
            "timeout": min(limit_s, LIMIT_S),
            "command_timeout": limit_s,
            "server_settings": {
                "application_name": "tollway",
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
            },
        },
    )
