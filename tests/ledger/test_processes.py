"""Several gateway processes on one ledger: together within every limit, and exact when they are killed or stopped."""

import asyncio
import itertools
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
from support.ledger import catalogue, ledger, publisher, reserve
from support.ledger_worker import ACCOUNTS

from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.ops import Reserved
from tollway_serving.ledger.publish import DatabasePublisher
from tollway_serving.ledger.verify import verify

_TESTS = Path(__file__).parents[1]
_seeds = itertools.count(int(os.environ.get("TOLLWAY_TEST_SEED", "1")))


class Worker:
    """A process of support.ledger_worker and what it has said so far."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.settled: dict[str, int] = {}
        self.covered: dict[str, int] = {}
        self.said: dict[str, int] = defaultdict(int)
        self.ready = asyncio.Event()
        self.charging = asyncio.Event()  # its first settlement is through

    async def start(self, url: str, *, seconds: float, credits_micro: int) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "support.ledger_worker",
            url,
            self.owner,
            f"--seconds={seconds}",
            f"--credits={credits_micro}",
            f"--seed={next(_seeds)}",
            stdout=asyncio.subprocess.PIPE,
            cwd=_TESTS,
        )
        self._reader = asyncio.create_task(self._listen())
        await self.ready.wait()

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            word, *rest = line.decode().split()
            self.said[word] += 1
            if word == "ready":
                self.ready.set()
            elif word == "settled":
                self.settled[rest[0]] = int(rest[1])
                self.charging.set()
            elif word == "covered":
                self.covered[rest[0]] = max(int(rest[1]), self.covered.get(rest[0], 0))

    async def ended(self) -> int:
        await self._reader
        return await self.process.wait()


async def _charges(database: Database) -> dict[str, sa.Row[tuple[str, int, int, str]]]:
    table = schema.usage
    wanted = sa.select(table.c.charge_id, table.c.charged_micro, table.c.estimated, table.c.counts)
    rows = await database.read(lambda connection: connection.execute(wanted).all())
    return {row[0]: row for row in rows}


async def _bury(database: Database, owner: str, operator: DatabasePublisher) -> None:
    """As when the grace of a dead owner has passed."""
    gone = sa.update(schema.replicas).where(schema.replicas.c.owner == owner).values(seen_ms=0)
    await database.write(lambda connection: connection.execute(gone).rowcount)
    while await operator.reap():
        pass


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[tuple[DatabasePublisher, Database]]:
    async with publisher(url, catalogue(accounts=ACCOUNTS)) as operator:
        database = Database(url, limit_s=30)
        try:
            yield operator, database
        finally:
            await database.close()


async def test_processes_share_limits_exactly(url: str) -> None:
    """Credits for some of what they want: they end when those are used up, to the last one that anybody can pay."""
    credits_micro = 60_000
    async with _opened(url) as (operator, database):
        workers = [Worker(f"gateway-{i}") for i in range(3)]
        for worker in workers:
            await worker.start(url, seconds=8, credits_micro=credits_micro)
        while any(worker.process.returncode is None for worker in workers):
            assert (await verify(url)).problems == []
            await asyncio.sleep(0.3)
        assert [await worker.ended() for worker in workers] == [0, 0, 0]
        assert await operator.open_holds() == {}
        report = await verify(url)
        assert report.problems == []
        said = {charge: micro for worker in workers for charge, micro in worker.settled.items()}
        rows = await _charges(database)
        assert {charge: row.charged_micro for charge, row in rows.items()} == said
        assert sum(worker.said["refused"] for worker in workers) > 0
        table = schema.usage
        sums = sa.select(table.c.account, sa.func.sum(table.c.charged_micro)).group_by(table.c.account)
        for _, used in await database.read(lambda connection: connection.execute(sums).all()):
            assert used <= credits_micro


async def test_killed_processes_are_charged_for_what_left_them(url: str) -> None:
    chance = random.Random(next(_seeds))
    async with _opened(url) as (operator, database):
        survivor = Worker("survivor")
        await survivor.start(url, seconds=6, credits_micro=10**9)
        killed = []
        for number in range(4):
            victim = Worker(f"victim-{number}")
            await victim.start(url, seconds=60, credits_micro=10**9)
            await victim.charging.wait()
            await asyncio.sleep(0.1 + chance.random() * 0.5)
            victim.process.kill()
            assert await victim.ended() == -signal.SIGKILL
            killed.append(victim)
            report = await verify(url)
            assert report.problems == []
        assert await survivor.ended() == 0
        assert survivor.said["unavailable"] == 0
        for victim in killed:
            await _bury(database, victim.owner, operator)
        assert await operator.open_holds() == {}
        assert (await verify(url)).problems == []
        rows = await _charges(database)
        for worker in (survivor, *killed):
            assert worker.said["settled"] > 0
            for charge, micro in worker.settled.items():
                assert rows[charge].charged_micro == micro
            for charge, tokens in worker.covered.items():
                assert rows[charge].charged_micro >= 7 + 2 * tokens, "less than was sent"
                if rows[charge].estimated:
                    assert rows[charge].charged_micro <= 7 + 2 * (tokens + 60), "more than a step beyond what was sent"


_LOCKER = """
import asyncio, asyncpg, os, signal, sys
from tollway_serving.ledger.postgres import SESSION
async def main():
    connection = await asyncpg.connect(sys.argv[1], server_settings=SESSION)
    await connection.execute("begin")
    await connection.fetch("select * from tollway_subjects where id = 'account:team/a0' for update")
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
asyncio.run(main())
"""


async def test_a_stopped_process_frees_the_others(postgres_url: str) -> None:
    """Stopped while it holds the account's lock: the server ends its session, the others wait no 2 s."""
    async with _opened(postgres_url), ledger(postgres_url) as store:
        assert isinstance(await store.submit(reserve()), Reserved)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LOCKER, postgres_url, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"locked\n"
            assert isinstance(await store.submit(reserve()), Reserved)
        finally:
            process.kill()
            await process.wait()


async def test_a_stopped_gateway_goes_on_afterwards(url: str) -> None:
    async with _opened(url) as (operator, _):
        worker = Worker("stopped")
        await worker.start(url, seconds=4, credits_micro=10**9)
        await asyncio.sleep(0.3)
        worker.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        worker.process.send_signal(signal.SIGCONT)
        assert await worker.ended() == 0
        assert await operator.open_holds() == {}
        assert (await verify(url)).problems == []
