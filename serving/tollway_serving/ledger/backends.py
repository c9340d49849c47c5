"""Chooses the hot path's implementation by a database URL; used by `store` and `publish`."""

from tollway_serving.ledger.backend import Backend
from tollway_serving.ledger.database import sqlite_path
from tollway_serving.ledger.postgres import PostgresBackend
from tollway_serving.ledger.sqlite import SqliteBackend


def open_backend(url: str) -> Backend:
    """Connects nothing yet. ValueError for a URL of another kind."""
    path = sqlite_path(url)
    return PostgresBackend(url) if path is None else SqliteBackend(path)
