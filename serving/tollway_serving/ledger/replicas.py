"""Gateway replicas' heartbeats and the holds of those that fell silent; used by `store` and `publish`."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tollway_serving.ledger import schema
from tollway_serving.ledger.database import now_ms
from tollway_serving.ledger.port import Replica

FRESH_MS = 15_000
"""A replica announces itself every 5 s; one that was silent for longer is no metrics target."""

GRACE_MS = 20_000
"""An owner that was silent for longer is taken for dead, and its holds are closed."""

_REAPED_AT_ONCE = 200


def insert_for(connection: sa.Connection, table: sa.Table) -> Any:
    """The dialect's insert, which knows on_conflict_do_update with the same spelling on both."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def announce(connection: sa.Connection, owner: str, metrics_url: str) -> None:
    row = {"owner": owner, "metrics_url": metrics_url, "seen_ms": now_ms(connection)}
    insert = insert_for(connection, schema.replicas).values(row)
    changed = {"metrics_url": insert.excluded.metrics_url, "seen_ms": insert.excluded.seen_ms}
    connection.execute(insert.on_conflict_do_update(index_elements=["owner"], set_=changed))


def leave(connection: sa.Connection, owner: str) -> None:
    connection.execute(sa.delete(schema.replicas).where(schema.replicas.c.owner == owner))


def fresh(connection: sa.Connection) -> tuple[Replica, ...]:
    table = schema.replicas
    wanted = sa.select(table).where(table.c.seen_ms >= now_ms(connection) - FRESH_MS, table.c.metrics_url != "")
    return tuple(Replica(r.owner, r.metrics_url, r.seen_ms // 1000) for r in connection.execute(wanted))


def expired_holds(connection: sa.Connection) -> list[str]:
    """Charge ids of holds past their deadline, or whose owner has been silent for the grace."""
    now, holds, owners = now_ms(connection), schema.holds, schema.replicas
    joined = sa.outerjoin(holds, owners, holds.c.owner == owners.c.owner)
    silent = sa.or_(owners.c.seen_ms.is_(None), owners.c.seen_ms < now - GRACE_MS)
    wanted = sa.select(holds.c.charge_id).select_from(joined).where(sa.or_(holds.c.deadline_ms < now, silent))
    return list(connection.scalars(wanted.limit(_REAPED_AT_ONCE)))


def open_holds(connection: sa.Connection) -> dict[str, int]:
    model = schema.holds.c.model_id
    rows = connection.execute(sa.select(model, sa.func.count()).group_by(model))
    return {name: count for name, count in rows}  # noqa: C416 - a Row is not a pair for dict()
