"""How records of repeated POSTs are read and changed, in both drivers' own words: run by `sqlite` and `postgres`."""

from dataclasses import asdict
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tollway_serving.ledger import schema
from tollway_serving.ledger.idempotency import Change, Close, Key, Point, Record

_table = schema.idempotency
_OF_KEY = sa.and_(*(_table.c[name] == sa.bindparam(f"key_{name}") for name in ("account", "route", "name")))
_IS_OPEN = _table.c.state == sa.literal_column("'open'")  # written out: no parameter
_HELD = sa.exists().where(schema.holds.c.charge_id == _table.c.charge_id)


def _put(dialect: Any) -> Any:
    values = {column.name: sa.bindparam(column.name, type_=column.type) for column in _table.columns}
    insert = dialect.insert(_table).values(values)
    keys = [column.name for column in _table.primary_key.columns]
    others = {name: insert.excluded[name] for name in values if name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=others)


def _statements(dialect: Any) -> dict[str, Any]:
    charge, attempt = _table.c.charge_id == sa.bindparam("of_charge"), _table.c.attempt == sa.bindparam("of_attempt")
    closed: dict[str, Any] = {
        name: sa.bindparam(name) for name in ("state", "charged_micro", "expires_ms", "headers", "body")
    }
    return {
        "read": sa.select(_table).where(_OF_KEY),
        "put": _put(dialect),
        "point": sa.update(_table).where(_OF_KEY, attempt).values(charge_id=sa.bindparam("charge_id")),
        "close": sa.update(_table).where(_OF_KEY, charge).values(closed),
        "drop_charge": sa.delete(_table).where(_OF_KEY, charge, _IS_OPEN),
        "drop_attempt": sa.delete(_table).where(_OF_KEY, attempt, _IS_OPEN, ~_HELD),
    }


def _compiled(dialect_module: Any, dialect: sa.Dialect) -> dict[str, tuple[str, tuple[str, ...]]]:
    made = {}
    for name, statement in _statements(dialect_module).items():
        compiled = statement.compile(dialect=dialect)
        made[name] = (str(compiled), tuple(compiled.positiontup or ()))
    return made


_NUMBERED: sa.Dialect = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
SQLITE = {name: text for name, (text, _) in _compiled(sqlite, sqlite.dialect(paramstyle="named")).items()}
"""With :named parameters."""
POSTGRES = _compiled(postgresql, _NUMBERED)
"""With $1, $2, … and the names of their parameters, in that order."""


def read_parameters(key: Key) -> dict[str, Any]:
    return dict(zip(("key_account", "key_route", "key_name"), key, strict=True))


def change(what: Change) -> tuple[str, dict[str, Any]]:
    """The statement's name and its parameters."""
    if isinstance(what, Record):
        return "put", asdict(what)
    key = read_parameters(what.key)
    if isinstance(what, Point):
        return "point", {**key, "of_attempt": what.attempt, "charge_id": what.charge_id}
    if isinstance(what, Close):
        answer = what.answer
        return "close", {
            **key,
            "of_charge": what.charge_id,
            "state": "sent" if answer is None else "kept",
            "charged_micro": what.charged_micro,
            "expires_ms": what.expires_ms,
            "headers": "[]" if answer is None else orjson.dumps(answer.headers).decode(),
            "body": None if answer is None else answer.body,
        }
    if what.charge_id is not None:
        return "drop_charge", {**key, "of_charge": what.charge_id}
    return "drop_attempt", {**key, "of_attempt": what.attempt}
