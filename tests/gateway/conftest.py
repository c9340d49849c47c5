"""Fixtures: a misbehaving model server, and gateways in front of it."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend
from support.gateway import Running, run_gateway
from support.postgres import Server, server

from tollway_serving.gateway import logs

Start = Callable[..., Any]

_databases = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    logs.configure()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = await Backend().start()
    yield backend
    await backend.close()


@pytest.fixture
async def start(tmp_path: Path, backend: Backend) -> AsyncIterator[Start]:
    """`await start(...)`: a gateway with run_gateway's arguments."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Running:
            return await stack.enter_async_context(run_gateway(tmp_path, backend, **options))

        yield start


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new and empty database, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    running: Server = request.getfixturevalue("postgres")
    name = f"gateway{next(_databases)}"
    yield running.create_database(name)
    running.drop_database(name)
