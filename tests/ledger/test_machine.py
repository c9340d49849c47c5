"""The same properties as tests/unit/test_admit_machine.py on real databases, through the stores."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from support.ledger import catalogue, publisher
from support.ledger_machine import Driver, LedgerMachine
from support.postgres import Server

from tollway_serving.ledger import schema
from tollway_serving.ledger.backends import open_backend
from tollway_serving.ledger.database import Database, now_ms
from tollway_serving.ledger.grant import grant
from tollway_serving.ledger.state import State, decode
from tollway_serving.ledger.transaction import AnyOp, Result
from tollway_serving.ledger.verify import verify_connection

_numbers = itertools.count()


class StoreDriver:
    """One new database; its clock is the real one. `turns` says which backend carries out the next operations."""

    def __init__(self, url: str, turns: tuple[int, ...] = (0,)) -> None:
        self._url = url
        self._runner = asyncio.Runner()
        self._backends = [open_backend(url) for _ in range(max(turns) + 1)]
        self._turns = itertools.cycle(turns)
        self._runner.run(self._begin())
        self._database = Database(url)

    async def _begin(self) -> None:
        async with publisher(self._url, catalogue(accounts=2)):
            for backend in self._backends:
                await backend.connect()

    def run(self, ops: list[AnyOp]) -> list[Result]:
        return self._runner.run(self._backends[next(self._turns)].transact(ops)).results

    def grant(self, account: str, micro: int) -> None:
        self._runner.run(grant(self._url, account, micro, f"grant-{next(_numbers)}"))

    def advance(self, ms: int) -> None:
        """Real time passes by itself."""

    def states(self) -> dict[str, State]:
        wanted = sa.select(schema.subjects.c.id, schema.subjects.c.state)
        rows: Any = self._runner.run(self._database.read(lambda connection: connection.execute(wanted).all()))
        return {name: decode(text) for name, text in rows}

    def now(self) -> int:
        return self._runner.run(self._database.read(now_ms))

    def problems(self) -> list[str]:
        return self._runner.run(self._database.read(verify_connection)).problems

    def close(self) -> None:
        for backend in self._backends:
            self._runner.run(backend.close())
        self._runner.run(self._database.close())
        self._runner.close()


def _check(machine: type[LedgerMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_on_sqlite(sqlite_file: Path) -> None:
    class Machine(LedgerMachine):
        def make_driver(self) -> Driver:
            return StoreDriver(f"sqlite://{sqlite_file.parent}/{next(_numbers)}.db")

    _check(Machine, 12)


def test_on_sqlite_beside_another_process(sqlite_file: Path) -> None:
    """Each is alone with the file for some transactions, and then finds that the other was there."""

    class Machine(LedgerMachine):
        def make_driver(self) -> Driver:
            return StoreDriver(f"sqlite://{sqlite_file.parent}/{next(_numbers)}.db", turns=(0, 0, 0, 0, 1, 0, 1, 1, 1))

    _check(Machine, 12)


@pytest.mark.timeout(300)
def test_on_postgres(postgres: Server) -> None:
    class Machine(LedgerMachine):
        def make_driver(self) -> Driver:
            return StoreDriver(postgres.create_database(f"machine{next(_numbers)}"), turns=(0, 0, 0, 1, 0, 1, 1))

    _check(Machine, 8)
