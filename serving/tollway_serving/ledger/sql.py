"""The hot statements' text, made once for schema.py's tables; run by `sqlite` and `postgres` on the driver itself."""

from collections.abc import Iterable
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tollway_serving.ledger import schema
from tollway_serving.ledger.transaction import (
    COVER_COLUMNS,
    HOLD_COLUMNS,
    ROLLUP_COLUMNS,
    ROLLUP_KEY,
    ROLLUP_SUMS,
    SUBJECT_COLUMNS,
    USAGE_COLUMNS,
)

_POSTGRES: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

_SUMS = ", ".join(f"{name} = {schema.rollups.name}.{name} + excluded.{name}" for name in ROLLUP_SUMS)
_INSERTS: dict[str, tuple[sa.Table, tuple[str, ...], str]] = {
    "subjects": (schema.subjects, SUBJECT_COLUMNS, " on conflict (id) do update set state = excluded.state"),
    "opened": (schema.holds, HOLD_COLUMNS, ""),
    "usage": (schema.usage, USAGE_COLUMNS, ""),
    "rollups": (schema.rollups, ROLLUP_COLUMNS, f" on conflict ({', '.join(ROLLUP_KEY)}) do update set {_SUMS}"),
}
"""By what of a Work they write: the table, the columns of a row, and what follows the rows."""


@lru_cache(maxsize=256)
def sqlite_insert(what: str, rows: int) -> str:
    """With that many rows of positional parameters."""
    table, names, conflict = _INSERTS[what]
    row = f"({', '.join('?' * len(names))})"
    return f"insert into {table.name} ({', '.join(names)}) values {', '.join([row] * rows)}{conflict}"  # noqa: S608


def _recordset(table: sa.Table, names: Iterable[str], parameter: int) -> str:
    types = ", ".join(f"{name} {table.c[name].type.compile(_POSTGRES)}" for name in names)
    return f"json_to_recordset(${parameter}::json) as r({types})"


def _insert(what: str, parameter: int) -> str:
    table, names, conflict = _INSERTS[what]
    listed = ", ".join(names)
    return f"insert into {table.name} ({listed}) select {listed} from {_recordset(table, names, parameter)}{conflict}"  # noqa: S608


def postgres_write() -> str:
    """One statement for all changes of a batch: JSON texts of subjects, opened holds, covered holds, rollups and usage,
    and an array of the charge ids that ended."""
    return f"""
with subjects as ({_insert("subjects", 1)}),
opened as ({_insert("opened", 2)}),
covered as (update {schema.holds.name} h set covered_output = r.covered_output, covered_prompt = r.covered_prompt
  from {_recordset(schema.holds, COVER_COLUMNS, 3)} where h.charge_id = r.charge_id),
ended as (delete from {schema.holds.name} where charge_id = any($6::text[])),
rollups as ({_insert("rollups", 4)})
{_insert("usage", 5)}"""  # noqa: S608 - names from schema.py, no values
