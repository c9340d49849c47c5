"""The hot statements' text, made once from schema.py's tables; run by `sqlite` and `postgres` on the driver itself."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tollway_serving.ledger import schema
from tollway_serving.ledger.transaction import ROLLUP_KEY, ROLLUP_SUMS

_POSTGRES: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


def _columns(table: sa.Table, names: Iterable[str] | None = None) -> list[sa.Column[object]]:
    return [table.c[name] for name in (names or table.c.keys())]


def sqlite_insert(table: sa.Table) -> str:
    return _sqlite(sa.insert(table))


def sqlite_upsert_subject() -> str:
    insert = sqlite.insert(schema.subjects).values(
        {"id": sa.bindparam("id"), "state": sa.bindparam("state")},
    )
    return _sqlite(insert.on_conflict_do_update(index_elements=["id"], set_={"state": insert.excluded.state}))


def sqlite_upsert_rollup() -> str:
    table = schema.rollups
    insert = sqlite.insert(table)
    sums = {name: table.c[name] + insert.excluded[name] for name in ROLLUP_SUMS}
    return _sqlite(insert.on_conflict_do_update(index_elements=list(ROLLUP_KEY), set_=sums))


def _sqlite(statement: sa.Insert) -> str:
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))


def _recordset(table: sa.Table, names: Iterable[str], parameter: int) -> str:
    types = ", ".join(f"{c.name} {c.type.compile(_POSTGRES)}" for c in _columns(table, names))
    return f"json_to_recordset(${parameter}::json) as r({types})"


def _insert(table: sa.Table, names: Iterable[str], parameter: int) -> str:
    names = list(names)
    listed = ", ".join(names)
    return f"insert into {table.name} ({listed}) select {listed} from {_recordset(table, names, parameter)}"  # noqa: S608


def postgres_write() -> str:
    """One statement for all changes of a batch: JSON texts of subjects, opened holds, covered holds, rollups and usage,
    and an array of the charge ids that ended."""
    covered = ("charge_id", "covered_output", "covered_prompt")
    sums = ", ".join(f"{name} = {schema.rollups.name}.{name} + excluded.{name}" for name in ROLLUP_SUMS)
    return f"""
with subjects as ({_insert(schema.subjects, ("id", "state"), 1)}
  on conflict (id) do update set state = excluded.state),
opened as ({_insert(schema.holds, schema.holds.c.keys(), 2)}),
covered as (update {schema.holds.name} h set covered_output = r.covered_output, covered_prompt = r.covered_prompt
  from {_recordset(schema.holds, covered, 3)} where h.charge_id = r.charge_id),
ended as (delete from {schema.holds.name} where charge_id = any($6::text[])),
rollups as ({_insert(schema.rollups, schema.rollups.c.keys(), 4)}
  on conflict ({", ".join(ROLLUP_KEY)}) do update set {sums})
{_insert(schema.usage, schema.usage.c.keys(), 5)}"""  # noqa: S608 - names from schema.py, no values
