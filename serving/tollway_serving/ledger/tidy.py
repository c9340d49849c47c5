"""What has had its time: answers kept for a repeated POST, records that their gateway left open, and single calls older
than the installation keeps them. Run every few seconds by `store` and `publish`, from any number of processes."""

import sqlalchemy as sa

from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database, now_ms
from tollway_serving.ledger.ops import Forget
from tollway_serving.ledger.periods import DAY_MS
from tollway_serving.ledger.replicas import GRACE_MS

MIN_USAGE_DAYS = 45
"""Calls of the current month and week must be there: `verify` holds accounts against them."""

MAX_USAGE_DAYS = 36_500
"""A hundred years: a longer time begins before any database's."""

_AT_ONCE = 500
_ROWS_AT_ONCE = 5_000


def usage_days(days: int) -> int | None:
    """A setting as it is written: 0 is for ever (None). ValueError for less than MIN_USAGE_DAYS, and for ages."""
    if days != 0 and days < MIN_USAGE_DAYS:
        raise ValueError(f"must be 0 (for ever) or at least {MIN_USAGE_DAYS}")
    if days > MAX_USAGE_DAYS:
        raise ValueError(f"must be 0 (for ever) or at most {MAX_USAGE_DAYS}")
    return days or None


def left_behind(connection: sa.Connection) -> list[Forget]:
    """For open records without a hold whose gateway fell silent, or that are older than a call can be."""
    now, table, owners, holds = now_ms(connection), schema.idempotency, schema.replicas, schema.holds
    joined = sa.outerjoin(table, owners, table.c.owner == owners.c.owner)
    silent = sa.or_(owners.c.seen_ms.is_(None), owners.c.seen_ms < now - GRACE_MS)
    wanted = (
        sa.select(table.c.account, table.c.route, table.c.name, table.c.attempt)
        .select_from(joined)
        .where(table.c.state == "open", sa.or_(table.c.expires_ms < now, silent))
        .where(~sa.exists().where(holds.c.charge_id == table.c.charge_id))
    )
    return [Forget(*row) for row in connection.execute(wanted.limit(_AT_ONCE))]


async def drop_expired_answers(database: Database) -> None:
    """Looks first: a write takes its turn among all writers, and there is seldom anything to drop."""
    if await database.read(lambda connection: connection.execute(_expired(connection).limit(1)).first()) is not None:
        await database.write(_drop_expired)


def _drop_expired(connection: sa.Connection) -> None:
    table = schema.idempotency
    expired = _expired(connection).limit(_AT_ONCE)
    where = sa.tuple_(table.c.account, table.c.route, table.c.name).in_(expired)
    connection.execute(sa.delete(table).where(where))


def _expired(connection: sa.Connection) -> sa.Select[tuple[str, str, str]]:
    table = schema.idempotency
    return sa.select(table.c.account, table.c.route, table.c.name).where(
        table.c.expires_ms < now_ms(connection), table.c.state != "open"
    )


def drop_usage(connection: sa.Connection, days: int) -> int:
    """Single calls from more than `days` days ago, some thousands at a time; the roll-ups stay. Answers how many went,
    0: none is left. ValueError for fewer than MIN_USAGE_DAYS."""
    if days < MIN_USAGE_DAYS:
        raise ValueError(f"must be at least {MIN_USAGE_DAYS}")
    meta, table = schema.meta, schema.usage
    now = now_ms(connection)
    before = now - now % DAY_MS - days * DAY_MS
    known = meta.c.name == "usage_from_ms"
    if (connection.scalar(sa.select(meta.c.value).where(known)) or 0) < before:
        connection.execute(sa.update(meta).where(known).values(value=before))
    oldest = sa.select(table.c.charge_id).where(table.c.created_ms < before).order_by(table.c.created_ms)
    return connection.execute(sa.delete(table).where(table.c.charge_id.in_(oldest.limit(_ROWS_AT_ONCE)))).rowcount
