"""A database that is locked, full, restarted, cut off or silent: refused within 2 s, nothing lost, nothing twice."""

import asyncio
import os
import resource
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.ledger import catalogue, ledger, publisher, reserve, settle
from support.postgres import Server
from support.proxy import Proxy

from tollway_serving.ledger.ops import Cover, LedgerUnavailable, Reserved
from tollway_serving.ledger.store import Store
from tollway_serving.ledger.verify import verify

LIMIT_S = 2.0
SLACK_S = 0.5  # a busy test machine's


@asynccontextmanager
async def opened(url: str, through: str | None = None) -> AsyncIterator[Store]:
    async with publisher(url, catalogue()), ledger(through or url) as store:
        yield store
    assert (await verify(url)).problems == []


async def _unavailable_in_time(store: Store) -> None:
    begun = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        await store.submit(reserve())
    assert time.monotonic() - begun < LIMIT_S + SLACK_S


async def _recovers(store: Store) -> None:
    async with asyncio.timeout(15):
        while True:
            op = reserve()
            try:
                assert isinstance(await store.submit(op), Reserved)
            except LedgerUnavailable:
                continue
            assert (await store.submit(settle(op))).charged_micro == 50
            return


async def test_a_locked_sqlite_file(sqlite_url: str, sqlite_file: Path) -> None:
    async with opened(sqlite_url) as store:
        op = reserve()
        await store.submit(op)
        other = sqlite3.connect(sqlite_file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        late = store.submit(settle(op))
        await _unavailable_in_time(store)
        with pytest.raises(LedgerUnavailable):
            await late
        other.execute("ROLLBACK")
        other.close()
        await _recovers(store)
        # Its waiter was told that the ledger is unavailable, and the store has carried it out all the same.
        assert (await store.submit(settle(op, output=0))).charged_micro == 50


async def test_a_full_disk(sqlite_url: str) -> None:
    """Writes beyond the first 64 KiB of any file fail, as on a full disk; the ledger's log is longer by then."""
    async with opened(sqlite_url) as store:
        op = reserve()
        await store.submit(op)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, unlimited[1]))
        try:
            late = store.submit(settle(op))
            await _unavailable_in_time(store)
            with pytest.raises(LedgerUnavailable):
                await late
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        await _recovers(store)
        assert (await store.submit(settle(op, output=0))).charged_micro == 50


async def test_a_missing_sqlite_file_is_no_new_ledger(sqlite_url: str, sqlite_file: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        async with ledger(sqlite_url):
            pass
    assert not os.listdir(sqlite_file.parent)


async def test_postgres_crashes_and_comes_back(postgres: Server, postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        op = reserve()
        await store.submit(op)
        postgres.stop("immediate")
        try:
            late = store.submit(settle(op))
            await _unavailable_in_time(store)
            with pytest.raises(LedgerUnavailable):
                await late
        finally:
            postgres.start()
        await _recovers(store)
        assert (await store.submit(settle(op, output=0))).charged_micro == 50


@pytest.fixture
async def proxy(postgres: Server) -> AsyncIterator[Proxy]:
    between = Proxy(postgres.port)
    yield between
    await between.close()


@pytest.mark.parametrize("operation", ["reserve", "cover", "settle"])
async def test_a_commit_whose_answer_is_lost(proxy: Proxy, postgres_url: str, operation: str) -> None:
    """Committed or not, the store cannot know; carried out again, it is neither lost nor done twice."""
    async with opened(postgres_url, await proxy.start(postgres_url)) as store:
        op = reserve(deadline_ms=3_600_000)

        async def cut(awaitable: "asyncio.Future[object]") -> object:
            proxy.cut_after = lambda data: proxy.cuts == 0 and b"commit" in data
            return await awaitable

        first = await (cut(store.submit(op)) if operation == "reserve" else store.submit(op))
        assert isinstance(first, Reserved)
        covering = store.submit(Cover(op.charge_id, 3))
        await (cut(covering) if operation == "cover" else covering)
        closing = store.submit(settle(op))
        receipt = await (cut(closing) if operation == "settle" else closing)
        assert receipt == await store.submit(settle(op))
        assert proxy.cuts == 1
    report = await verify(postgres_url)
    assert (report.open_holds, report.usage_rows, report.charged_micro) == (0, 1, 50)


async def test_a_silent_network(proxy: Proxy, postgres_url: str) -> None:
    async with opened(postgres_url, await proxy.start(postgres_url)) as store:
        proxy.silent = True
        await _unavailable_in_time(store)
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            await store.load_catalogue(0)
        assert time.monotonic() - begun < LIMIT_S + SLACK_S
        proxy.silent = False
        await _recovers(store)
    report = await verify(postgres_url)
    assert report.open_holds == 0, "a reserve that was answered with LedgerUnavailable holds nothing"
