"""Which schema versions this release works with; checked by every gateway before it is ready, set by migrations.

Migrations are expand first, contract a release later: the database says its own version and the oldest release's
version that still works with it.
"""

import sqlalchemy as sa

from tollway_serving.ledger import schema
from tollway_serving.ledger.ops import LedgerUnavailable

SCHEMA_VERSION = 2


def check_version(connection: sa.Connection) -> None:
    """Raises LedgerUnavailable unless the database is as new as this release and still works with it."""
    if not sa.inspect(connection).has_table(schema.meta.name):
        raise LedgerUnavailable("the database has no ledger yet: the operator or `tollway up` creates it")
    rows = connection.execute(sa.select(schema.meta.c.name, schema.meta.c.value))
    values = {name: value for name, value in rows}  # noqa: C416 - a Row is not a pair for dict()
    version, oldest = values.get("schema_version", 0), values.get("compatible_from", 0)
    if not oldest <= SCHEMA_VERSION <= version:
        raise LedgerUnavailable(
            f"the database has schema {version} (works with {oldest} and newer), this release needs {SCHEMA_VERSION}"
        )
