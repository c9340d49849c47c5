"""What customers' questions cost on a large ledger: GET /usage and POST /usage/completions, on SQLite and PostgreSQL.

    python tests/bench/usage.py [--rows 1000000] [--stores sqlite,postgresql] [--folder FOLDER] [--times 20]

Writes a history of `--rows` calls with SQL (a hundred accounts over 180 days, one of them with a tenth of all calls;
two keys, two models, two statuses) and their roll-ups, then asks as the routes do, through the gateway's store. Fifty
million rows take about 25 GB and half an hour. The table goes to standard output as Markdown.
"""

import argparse
import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.ledger import catalogue, ledger, publisher
from support.postgres import Server, server

from tollway_serving.contract.catalogue import Limits
from tollway_serving.contract.units import UNITS
from tollway_serving.ledger import schema
from tollway_serving.ledger.periods import DAY_MS
from tollway_serving.ledger.questions import Dimension, Who, WindowQuery
from tollway_serving.ledger.store import Store
from tollway_serving.ledger.windows import Size, find_zone, runs

DAYS = 180
ACCOUNTS = 100
INDEXES = {index.name: index for index in schema.usage.indexes}


def history(rows: int, since: int, numbers: str) -> list[str]:
    """The statements, in the words that both databases know; `numbers` gives 0 … rows - 1 as n."""
    values = {
        "charge_id": "'past-' || (1000000000000 + n)",
        "request_id": "'past'",
        "created_ms": f"{since} + n * {DAYS * DAY_MS} / {rows}",
        "settled_ms": f"{since} + n * {DAYS * DAY_MS} / {rows} + 1000",
        "account": f"'team/a' || (case when n % 10 = 0 then 0 else 1 + n % {ACCOUNTS - 1} end)",
        "key_id": "'team/k' || ((n / 7) % 2)",
        "key_subject": "null",
        "plan": "'ml/pro'",
        "endpoint": "'ChatCompletions'",
        "model_id": "case when (n / 3) % 2 = 0 then 'small' else 'large' end",
        "revision": "1",
        "status": "case when (n / 11) % 20 = 0 then 'error' else 'ok' end",
        "http_status": "200",
        "error_code": "null",
        "estimated": "0",
        "duration_ms": "1000",
        "first_token_ms": "200",
        "fallback_from": "null",
        "fallback_depth": "0",
        "held_micro": "50",
        "charged_micro": "50",
        "topup_micro": "0",
        "overrun_micro": "0",
        "held": '\'{"requests":1,"input_tokens":10,"output_tokens":20}\'',
        "counts": '\'{"requests":1,"input_tokens":10,"output_tokens":20}\'',
        "prices": '\'{"input_tokens":1000000,"output_tokens":2000000}\'',
    }
    names = ", ".join(values)
    expressions = ", ".join(values.values())
    sums = {"calls": 1, "charged_micro": 50, "topup_micro": 0, "overrun_micro": 0} | dict.fromkeys(UNITS, 0)
    sums |= {"requests": 1, "input_tokens": 10, "output_tokens": 20}
    summed = ", ".join(f"{value} * count(*)" for value in sums.values())
    keys = "account, quarter, key_id, model_id, endpoint, status"
    rolled = "select account, created_ms - created_ms % 900000 as quarter, key_id, model_id, endpoint, status"
    return [
        *(f"drop index {name}" for name in INDEXES),
        f"insert into tollway_usage ({names}) select {expressions} from {numbers}",
        *(
            f"create index {name} on tollway_usage ({', '.join(c.name for c in index.columns)})"
            for name, index in INDEXES.items()
        ),
        f"insert into tollway_rollups ({keys.replace('quarter', 'quarter_ms')}, {', '.join(sums)}) "
        f"select {keys}, {summed} from ({rolled} from tollway_usage) as rolled group by {keys}",
        "analyze",
    ]


@contextmanager
def database(store: str, folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A new database's URL, and what runs a statement on it."""
    if store == "sqlite":
        file = folder / "usage.db"

        def run(statement: str) -> None:
            connection = sqlite3.connect(file, isolation_level=None)
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-2000000"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(statement)
            connection.close()

        yield f"sqlite://{file}", run
        return
    with server(fsync=False, folder=folder) as running:
        yield running.create_database("usage"), lambda statement: psql(running, statement)


def psql(running: Server, statement: str) -> None:
    memory = "set maintenance_work_mem = '2GB'; set work_mem = '1GB'; set synchronous_commit = off;"
    subprocess.run(
        [running.binaries / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", running.database_url("usage"), "-c", memory,
         "-c", statement],
        check=True,
    )  # fmt: skip


async def ask(store: Store, now: int, times: int) -> None:
    asked: list[tuple[str, Callable[[str], Awaitable[object]]]] = [
        ("GET /usage", lambda account: store.standing(Who(account, Limits(credits_monthly_micro=10**12))))
    ]
    for name, size, days, group_by in (
        ("30 days, by day", "DAY", 30.0, ()),
        ("180 days, by day, model and key", "DAY", 180.0, ("model", "key")),
        ("7 days, by hour and model", "HOUR", 7.0, ("model",)),
        ("31 days, by hour, model, key and status", "HOUR", 31.0, ("model", "key", "status")),
        ("1 hour, by minute", "MINUTE", 1 / 24, ()),
        ("24 hours, by minute and model", "MINUTE", 1.0, ("model",)),
    ):
        asked.append((name, windows(store, now, size, days, group_by)))  # type: ignore[arg-type]
    for name, question in asked:
        figures = []
        for account in ("team/a0", "team/a7"):
            took = []
            for _ in range(times):
                begun = time.perf_counter()
                answer = await question(account)
                took.append((time.perf_counter() - begun) * 1000)
            took.sort()
            rows = f"{len(answer):,}" if isinstance(answer, list) else "1"
            figures.append(f"{rows} | {took[0]:.1f} | {took[len(took) // 2]:.1f} | {took[-1]:.1f}")
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)


def windows(
    store: Store, now: int, size: Size, days: float, group_by: tuple[Dimension, ...]
) -> Callable[[str], Awaitable[object]]:
    zone = find_zone("Europe/Zurich")
    if zone is None:
        raise RuntimeError("no time zones here")
    found = tuple(runs(int(now - days * DAY_MS), now, size, zone, 10_000))
    return lambda account: store.window_usage(WindowQuery(account, found, size == "MINUTE", group_by))


async def measure(name: str, rows: int, times: int, folder: Path) -> None:
    now = int(time.time() * 1000)
    with database(name, folder) as (url, run):
        async with publisher(url, catalogue()):
            pass
        if name == "sqlite":
            counted = f"c(n) as (select 0 union all select n + 1 from c where n + 1 < {rows})"
            numbers = f"(with recursive {counted} select n from c)"
        else:
            numbers = f"generate_series(0::bigint, {rows - 1}) as n"
        for statement in history(rows, now - DAYS * DAY_MS, numbers):
            begun = time.perf_counter()
            await asyncio.to_thread(run, statement)
            print(f"{name}: {statement[:60]} … {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        await asyncio.to_thread(os.sync)  # what was loaded; else the first commit waits for all of it
        async with ledger(url) as store:
            print(f"\n{name}, {rows:,} calls: an account with a tenth of them, and one with a hundredth (ms)\n")
            print("| question | rows | first | p50 | most | rows | first | p50 | most |")
            print("|---|" + "---:|" * 8, flush=True)
            await ask(store, now, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--stores", default="sqlite,postgresql")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    for name in options.stores.split(","):
        with tempfile.TemporaryDirectory(prefix="tollway-usage-", dir=options.folder) as folder:
            Path(folder).chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
            asyncio.run(measure(name, options.rows, options.times, Path(folder)))


if __name__ == "__main__":
    main()
