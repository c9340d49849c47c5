"""What the ledger costs: pairs of reserve and settle a second, their latency and CPU, on SQLite and PostgreSQL.

    python tests/bench/ledger.py [--seconds 4] [--callers 1,32,256] [--accounts 1,1000] [--processes 1]
        [--stores sqlite,postgresql]

Callers are coroutines of a process, as in a gateway; each reserves, settles at once, and begins again. With more than
one process the callers are shared among them, and all work on the same accounts. Every limit of a plan is on. CPU is
the processes' own, so that a busy machine changes the times more than it. PostgreSQL is a server of its own on the same
disk, with fsync. The table goes to standard output as Markdown.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.ledger import catalogue, ledger, publisher, reserve, settle
from support.postgres import server

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.ledger.ops import Reserved
from tollway_serving.ledger.store import Store
from tollway_serving.ledger.verify import verify

WARM_UP_S = 0.5
LIMITS = Limits(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    concurrent_requests=10_000,
    credits_monthly_micro=10**15,
    quotas=(Quota(name="day", meter="Tokens", limit=10**12, period="Day"),),
)


@dataclass
class Times:
    """Seconds, one for each call."""

    reserve: list[float] = field(default_factory=list)
    settle: list[float] = field(default_factory=list)


async def caller(store: Store, number: int, accounts: int, until: float, times: Times) -> None:
    clock = time.perf_counter
    while (begun := clock()) < until:
        op = reserve(number % accounts, account_limits=LIMITS)
        if not isinstance(await store.submit(op), Reserved):
            raise RuntimeError("a reserve was refused: the benchmark's limits are meant to hold any load")
        reserved = clock()
        await store.submit(settle(op))
        times.reserve.append(reserved - begun)
        times.settle.append(clock() - reserved)
        number += 7919  # a prime: callers go through the accounts, each in an order of its own


@dataclass
class Measured:
    """Of one process: seconds on the wall and of CPU."""

    times: Times
    wall: float
    cpu: float


async def work(url: str, callers: int, accounts: int, seconds: float, owner: str) -> Measured:
    async with ledger(url, owner) as store:
        await load(store, callers, accounts, WARM_UP_S)
        wall, cpu = time.perf_counter(), time.process_time()
        times = await load(store, callers, accounts, seconds)
        return Measured(times, time.perf_counter() - wall, time.process_time() - cpu)


def work_alone(url: str, callers: int, accounts: int, seconds: float, owner: str) -> Measured:
    """In a process of its own."""
    logging.disable(logging.WARNING)
    return asyncio.run(work(url, callers, accounts, seconds, owner))


async def measure(url: str, callers: int, accounts: int, processes: int, seconds: float) -> str:
    shares = [callers // processes + (number < callers % processes) for number in range(processes)]
    async with publisher(url, catalogue(accounts=accounts)):
        if processes == 1:
            parts = [await work(url, callers, accounts, seconds, "gateway")]
        else:
            loop = asyncio.get_running_loop()
            with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
                parts = await asyncio.gather(
                    *(
                        loop.run_in_executor(pool, work_alone, url, share, accounts, seconds, f"gateway-{number}")
                        for number, share in enumerate(shares)
                    )
                )
    if problems := (await verify(url)).problems:
        raise RuntimeError(f"the books are wrong: {problems[:3]}")
    reserves = [value for part in parts for value in part.times.reserve]
    settles = [value for part in parts for value in part.times.settle]
    both = [a + b for a, b in zip(reserves, settles, strict=True)]
    rate = sum(len(part.times.settle) / part.wall for part in parts)
    figures = [f"{rate:,.0f}", f"{sum(part.cpu for part in parts) / len(settles) * 1e6:.0f}"]
    figures += [f"{percentile(each, p) * 1000:.1f}" for each in (reserves, settles, both) for p in (50, 99)]
    return " | ".join(figures)


async def load(store: Store, callers: int, accounts: int, seconds: float) -> Times:
    times, until = Times(), time.perf_counter() + seconds
    await asyncio.gather(*(caller(store, number, accounts, until, times) for number in range(callers)))
    return times


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def disk_ms(folder: str) -> tuple[float, float]:
    """p50 and p99 of appending 4 KiB and syncing: what a commit waits for at least."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(200):
            begun = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    return percentile(times, 50), percentile(times, 99)


@contextmanager
def databases(store: str) -> Iterator[Iterator[str]]:
    """URLs of new databases, without end."""
    if store == "sqlite":
        with tempfile.TemporaryDirectory(prefix="tollway-bench-") as folder:
            yield (f"sqlite://{folder}/{number}.db" for number in range(10**6))
    else:
        with server(fsync=True) as running:
            yield (running.create_database(f"bench{number}") for number in range(10**6))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--callers", type=numbers, default=[1, 32, 256])
    parser.add_argument("--accounts", type=numbers, default=[1, 1000])
    parser.add_argument("--processes", type=numbers, default=[1])
    parser.add_argument("--stores", default="sqlite,postgresql")
    options = parser.parse_args()
    p50, p99 = disk_ms(tempfile.gettempdir())
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a 4 KiB append and sync: {p50:.1f} / {p99:.1f} ms\n")
    head = "store | accounts | processes | callers | pairs/s | CPU µs"
    print(f"| {head} | reserve p50 | p99 | settle p50 | p99 | pair p50 | p99 |")
    print("|---|" + "---:|" * 11, flush=True)
    for store in options.stores.split(","):
        with databases(store) as urls:
            for accounts in options.accounts:
                for processes, callers in product(options.processes, options.callers):
                    if callers < processes:
                        continue
                    line = asyncio.run(measure(next(urls), callers, accounts, processes, options.seconds))
                    print(f"| {store} | {accounts:,} | {processes} | {callers} | {line} |", flush=True)


if __name__ == "__main__":
    main()
