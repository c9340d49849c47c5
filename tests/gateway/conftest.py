"""Fixtures: a misbehaving model server, and gateways in front of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend
from support.gateway import Running, run_gateway

from tollway_serving.gateway import logs

Start = Callable[..., Any]


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
