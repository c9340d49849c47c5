"""The two databases of the fault suite with what can go wrong in each; used by `fault_suite`.

Every fault is an async function that makes it, waits, and makes it good again; it answers when both happened. SQLite
lives on a small file system of its own, and so does PostgreSQL with its standby, to be filled up where root may mount.
"""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from support.postgres import MEMORY, create
from support.proxy import Proxy


@dataclass(frozen=True)
class Window:
    """When a fault was there, on the monotonic clock."""

    begun: float
    healed: float


Fault = Callable[[random.Random], Awaitable[Window]]


class FaultStore(Protocol):
    name: str
    url: str  # the gateways'
    faults: dict[str, Fault]
    untried: dict[str, str]  # kinds that can't be had here, and why

    @property
    def own_url(self) -> str:
        """Beside every proxy: for who looks at the books."""


@asynccontextmanager
async def open_store(name: str) -> AsyncIterator[FaultStore]:
    with ExitStack() as stack:
        if name == "sqlite":
            yield SqliteStore(Path(stack.enter_context(_volume())))
            return
        store = PostgresStore([stack.enter_context(_volume()) for _ in range(2)])
        await store.start()
        try:
            yield store
        finally:
            await store.close()


class SqliteStore:
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "ledger.db"
        self.url = self.own_url = f"sqlite://{self._file}"
        self.faults: dict[str, Fault] = {"locked file": self._locked}
        self.untried = _tried_where_mounted(folder, self.faults, self._full_disk)

    async def _locked(self, chance: random.Random) -> Window:
        other = await asyncio.to_thread(_locked, self._file)
        begun = time.monotonic()
        await asyncio.sleep(_length(chance))
        await asyncio.to_thread(other.close)  # rolls back
        return Window(begun, time.monotonic())

    async def _full_disk(self, chance: random.Random) -> Window:
        def fill() -> None:
            # What the log has is used again: only an empty one needs room at once.
            with contextlib.closing(sqlite3.connect(self._file, timeout=10, isolation_level=None)) as connection:
                connection.execute("pragma wal_checkpoint(truncate)")
            _fill(self._folder)

        return await _with_full_disk(self._folder, fill, chance)


class PostgresStore:
    """A primary, and a standby that has each commit before its client hears of it; both behind one address."""

    name = "postgresql"

    def __init__(self, volumes: list[Path]) -> None:
        self._volumes = volumes  # the primary's, then the standby's
        self._primary = create(_new_folder(volumes[0]))
        self._between = Proxy(self._primary.port)
        self.faults: dict[str, Fault] = {
            "restart": self._restart,
            "failover": self._failover,
            "connections cut": self._cut,
            "packets swallowed": self._silent,
            "connection lost in a commit": self._lost_commits,
            "locked table": self._locked,
        }
        self.untried = _tried_where_mounted(volumes[0], self.faults, self._full_disk)

    @property
    def own_url(self) -> str:
        return self._primary.database_url("faults")

    async def start(self) -> None:
        self.url = await self._between.start(self._primary.create_database("faults"))
        await asyncio.to_thread(self._new_standby)

    async def close(self) -> None:
        await self._between.close()
        for each in (self._standby, self._primary):
            with contextlib.suppress(RuntimeError):  # after a full disk, or in a failover that did not end
                await asyncio.to_thread(each.stop, "immediate")

    def _new_standby(self) -> None:
        self._standby = self._primary.standby(_new_folder(self._volumes[1]))

    async def _restart(self, chance: random.Random) -> Window:
        begun = time.monotonic()
        await asyncio.to_thread(self._primary.stop, chance.choice(("immediate", "fast")))
        await asyncio.sleep(_length(chance) / 2)
        await asyncio.to_thread(self._primary.start)
        return Window(begun, time.monotonic())

    async def _failover(self, chance: random.Random) -> Window:
        """The primary dies, and its address leads to the standby. What is connected to the old one is cut, or hears
        nothing any more as when a host is gone."""
        begun = time.monotonic()
        self._between.silent = chance.random() < 0.5
        lost = self._primary
        await asyncio.to_thread(lost.stop, "immediate")
        await asyncio.to_thread(self._standby.promote)
        self._primary, self._between.port = self._standby, self._standby.port
        if self._between.silent:
            self._between.leave_behind()
        else:
            self._between.cut()
        healed = time.monotonic()
        self._volumes.reverse()
        await asyncio.to_thread(self._new_standby)
        return Window(begun, healed)

    async def _cut(self, chance: random.Random) -> Window:
        begun = time.monotonic()
        self._between.refusing = True
        self._between.cut()
        await asyncio.sleep(_length(chance))
        self._between.refusing = False
        return Window(begun, time.monotonic())

    async def _silent(self, chance: random.Random) -> Window:
        begun = time.monotonic()
        self._between.silent = True
        await asyncio.sleep(_length(chance))
        self._between.silent = False
        return Window(begun, time.monotonic())

    async def _lost_commits(self, chance: random.Random) -> Window:
        """Some commits arrive, and their answers don't."""
        begun = time.monotonic()
        until = self._between.cuts + chance.randint(1, 5)
        self._between.cut_after = lambda data: self._between.cuts < until and b"commit" in data
        async with asyncio.timeout(20):
            while self._between.cuts < until:  # noqa: ASYNC110 - the next commit of whichever gateway
                await asyncio.sleep(0.01)
        self._between.cut_after = lambda _: False
        return Window(begun, time.monotonic())

    async def _locked(self, chance: random.Random) -> Window:
        begun = time.monotonic()
        seconds = _length(chance)
        statement = f"begin; lock table tollway_subjects; select pg_sleep({seconds:.2f}); commit"
        await asyncio.to_thread(self._primary.execute, statement, "faults")
        return Window(begun, time.monotonic())

    async def _full_disk(self, chance: random.Random) -> Window:
        """A server that has stopped for it is started again, as its supervisor does."""
        folder = self._volumes[0]
        window = await _with_full_disk(folder, lambda: _fill(folder), chance)
        if not await asyncio.to_thread(lambda: self._primary.running):
            with contextlib.suppress(RuntimeError):  # it has only just not been there, or is half dead
                await asyncio.to_thread(self._primary.stop, "immediate")
            await asyncio.to_thread(self._primary.start)
        return Window(window.begun, time.monotonic())


def _length(chance: random.Random) -> float:
    """Of a fault, in seconds: some are over before anybody is told, most are not."""
    return chance.choice((0.5, 2.5, 3.5)) + chance.random()


def _new_folder(volume: Path) -> Path:
    folder = volume / "pg"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _locked(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("begin immediate")
    return connection


def _tried_where_mounted(folder: Path, faults: dict[str, Fault], full_disk: Fault) -> dict[str, str]:
    if os.path.ismount(folder):
        faults["full disk"] = full_disk
        return {}
    return {"full disk": "a file system of its own can't be mounted here"}


async def _with_full_disk(folder: Path, fill: Callable[[], None], chance: random.Random) -> Window:
    await asyncio.to_thread(fill)
    begun = time.monotonic()
    await asyncio.sleep(_length(chance))
    (folder / "filler").unlink()
    return Window(begun, time.monotonic())


def _fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536 if os.statvfs(folder).f_bavail > 64 else 4096))


@contextmanager
def _volume() -> Iterator[Path]:
    """A folder that is a file system of its own, where that is allowed."""
    with tempfile.TemporaryDirectory(prefix="tollway-volume-", dir=MEMORY) as made:
        folder = Path(made)
        folder.chmod(0o755)
        mount = ["mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", str(folder)]
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        try:
            yield folder
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)
