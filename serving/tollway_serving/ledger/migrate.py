"""Brings the schema to this release's version; called by the leading operator and `tollway up` only, never a gateway.

Migrations are Alembic scripts packaged beside this module, run on a connection that holds a lock: of several callers
one migrates, and the others find nothing left to do.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

_LOCK = 0x746F6C6C  # any fixed number; "toll"


def migrate(connection: sa.Connection) -> None:
    """On SQLite the transaction itself is the lock (BEGIN IMMEDIATE)."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
