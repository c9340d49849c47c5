"""Every test that takes `url` runs on SQLite and on a real PostgreSQL, each time in a new and empty database."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postgres import MEMORY, Server, server

_databases = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    name = f"ledger{next(_databases)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture
def sqlite_file() -> Iterator[Path]:
    """In a folder of its own; not there yet."""
    with tempfile.TemporaryDirectory(prefix="tollway-ledger-", dir=MEMORY) as folder:
        yield Path(folder) / "ledger.db"


@pytest.fixture
def sqlite_url(sqlite_file: Path) -> str:
    return f"sqlite://{sqlite_file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return found
