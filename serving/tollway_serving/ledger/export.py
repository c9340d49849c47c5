"""Usage rows as records for invoices and spreadsheets: for `tollway usage export`.

One snapshot of the database, read in pages, so that fifty million rows need no memory. Credits are decimal numbers as
text ("0.000016"), counts whole numbers in contract.units' units, times UTC with milliseconds.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa

from tollway_serving.contract.units import UNITS, format_credits
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import REPORT_LIMIT_S, Database, in_snapshot
from tollway_serving.ledger.periods import key_bounds
from tollway_serving.ledger.version import check_version

Record = dict[str, Any]
Sink = Callable[[Record], object]

FIELDS: tuple[str, ...] = (
    "charge_id",
    "request_id",
    "created_at",
    "settled_at",
    "account",
    "key",
    "plan",
    "endpoint",
    "model",
    "status",
    "http_status",
    "error_code",
    "estimated",
    "duration_ms",
    "first_token_ms",
    "fallback_from",
    "fallback_depth",
    "catalogue_revision",
    "credits_held",
    "credits_charged",
    "credits_from_topups",
    "credits_overrun",
    *UNITS,
    "prices",
)
"""Every record has all of them, in this order. `prices` are micro-credits for units.PRICE_UNITS of each unit."""

_PAGE = 10_000
_PERIOD = re.compile(r"\d{4}-(\d{2}|W\d{2}|\d{2}-\d{2})")


@dataclass(frozen=True, slots=True)
class Span:
    """From `since_ms` to just before `until_ms`; None: open. A request belongs to the moment it was let in."""

    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    rows: int
    charged_micro: int


class _SinkError(Exception):
    """Keeps a full disk here apart from one of the database."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def period(key: str) -> Span:
    """Of a UTC month "2026-11", ISO week "2026-W48" or day "2026-11-25". ValueError for anything else."""
    if not _PERIOD.fullmatch(key):
        raise ValueError(f"{key!r} is no period: write a month (2026-11), an ISO week (2026-W48) or a day (2026-11-25)")
    try:
        return Span(*key_bounds(key))
    except ValueError as error:
        raise ValueError(f"{key!r} is no period: {error}") from error


async def export(url: str, accounts: Sequence[str], span: Span, sink: Sink) -> Exported:
    """Gives `sink` a record for each settled call of `accounts` (NAMESPACE/ACCOUNT; none: all), oldest first.

    `sink` may be called in another thread; what it raises ends the export, and is raised here. LedgerUnavailable.
    """
    database = Database(url, limit_s=REPORT_LIMIT_S)
    try:
        await database.read(check_version)
        return await database.read(lambda connection: _export(connection, accounts, span, sink))
    except _SinkError as error:
        raise error.cause from None
    finally:
        await database.close()


def _export(connection: sa.Connection, accounts: Sequence[str], span: Span, sink: Sink) -> Exported:
    in_snapshot(connection)
    table = schema.usage
    wanted = sa.select(table).order_by(table.c.created_ms, table.c.charge_id).limit(_PAGE)
    if accounts:
        wanted = wanted.where(table.c.account.in_(accounts))
    if span.since_ms is not None:
        wanted = wanted.where(table.c.created_ms >= span.since_ms)
    if span.until_ms is not None:
        wanted = wanted.where(table.c.created_ms < span.until_ms)
    rows = charged = 0
    page = connection.execute(wanted).all()
    while page:
        for row in page:
            try:
                sink(_record(row))
            except Exception as error:
                raise _SinkError(error) from error
            rows, charged = rows + 1, charged + row.charged_micro
        last = page[-1]
        # Both conditions: the first one is what an index on created_ms can begin at.
        after = (
            table.c.created_ms >= last.created_ms,
            sa.or_(table.c.created_ms > last.created_ms, table.c.charge_id > last.charge_id),
        )
        page = connection.execute(wanted.where(*after)).all() if len(page) == _PAGE else []
    return Exported(rows, charged)


def _record(row: sa.Row[Any]) -> Record:
    counts = orjson.loads(row.counts)
    return {
        "charge_id": row.charge_id,
        "request_id": row.request_id,
        "created_at": _time(row.created_ms),
        "settled_at": _time(row.settled_ms),
        "account": row.account,
        "key": row.key_id,
        "plan": row.plan,
        "endpoint": row.endpoint,
        "model": row.model_id,
        "status": row.status,
        "http_status": row.http_status,
        "error_code": row.error_code,
        "estimated": bool(row.estimated),
        "duration_ms": row.duration_ms,
        "first_token_ms": row.first_token_ms,
        "fallback_from": row.fallback_from,
        "fallback_depth": row.fallback_depth,
        "catalogue_revision": row.revision,
        "credits_held": format_credits(row.held_micro),
        "credits_charged": format_credits(row.charged_micro),
        "credits_from_topups": format_credits(row.topup_micro),
        "credits_overrun": format_credits(row.overrun_micro),
        **{unit: counts.get(unit, 0) for unit in UNITS},
        "prices": orjson.loads(row.prices),
    }


def _time(ms: int) -> str:
    seconds, rest = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
