"""What a customer may ask of its own account: used by `store` for `GET /usage` and `POST /usage/completions`.

Hours and days come from the roll-ups, whose size does not depend on the number of calls; minutes from the calls
themselves. A call that ended without a charge because another model took over ("released") is no call of its own.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tollway_serving.contract.catalogue import Quota
from tollway_serving.contract.units import METERS
from tollway_serving.ledger import schema
from tollway_serving.ledger.admit import Scope, credits_left, quota_used
from tollway_serving.ledger.database import in_snapshot, now_ms
from tollway_serving.ledger.periods import period_bounds, period_key
from tollway_serving.ledger.questions import (
    MAX_ROWS,
    Dimension,
    NotKeptError,
    QuotaUse,
    Standing,
    TooManyRowsError,
    Who,
    WindowQuery,
    WindowRow,
)
from tollway_serving.ledger.state import State, account_subject, decode
from tollway_serving.ledger.windows import Run

_COLUMNS: Mapping[Dimension, str] = {
    "model": "model_id",
    "key": "key_id",
    "endpoint": "endpoint",
    "status": "status",
}


def standing(connection: sa.Connection, who: Who) -> Standing:
    in_snapshot(connection)
    now = now_ms(connection)
    names = [account_subject(who.account), *([who.key_subject] if who.key_subject is not None else [])]
    table = schema.subjects
    rows = connection.execute(sa.select(table).where(table.c.id.in_(names)))
    found = {row.id: (decode(row.state), row.first_key_ms) for row in rows}
    account, first_key = found.get(names[0], (State(), None))
    now = max(now, account.clock)
    scopes = [Scope(account, who.account_limits, first_key)]
    if who.key_subject is not None:
        scopes.append(Scope(found.get(who.key_subject, (State(), None))[0], who.key_limits, is_key=True))
    start, end = period_bounds("Month", now)
    calls, ok, put, out, micro = _month(connection, who.account, start, end)
    return Standing(
        now_ms=now,
        month=period_key("Month", now),
        requests=calls,
        ok=ok,
        input_tokens=put,
        output_tokens=out,
        credits_used_micro=micro,
        credits_left_micro=credits_left(tuple(scopes), now),
        first_key_ms=first_key,
        trial_settled=account.trial[0],
        trial_held=account.trial[1],
        quotas=tuple(_quota(scope, quota, now) for scope in scopes for quota in scope.limits.quotas),
    )


def _month(connection: sa.Connection, account: str, start: int, end: int) -> list[int]:
    """Calls, successful ones, input tokens, output tokens, micro-credits."""
    table = schema.rollups
    names = ("calls", "requests", "input_tokens", "output_tokens", "charged_micro")
    row = connection.execute(
        sa.select(*(sa.func.coalesce(sa.func.sum(table.c[name]), 0) for name in names))
        .where(table.c.account == account, table.c.quarter_ms >= start, table.c.quarter_ms < end)
        .where(table.c.status != "released")
    ).one()
    return [int(value) for value in row]


def _quota(scope: Scope, quota: Quota, now: int) -> QuotaUse:
    settled, held = quota_used(scope.state, quota, now)
    size = METERS[quota.meter][1]
    return QuotaUse(quota, scope.is_key, settled // size, -(-held // size), period_bounds(quota.period, now)[1])


def window_usage(connection: sa.Connection, query: WindowQuery) -> list[WindowRow]:
    """Windows with calls in them, in order of time and then of their groups. TooManyRowsError, NotKeptError."""
    in_snapshot(connection)
    if query.by_call:
        meta = schema.meta
        kept = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "usage_from_ms")) or 0
        if query.runs and query.runs[0].start_ms < kept:
            raise NotKeptError(kept)
    rows: list[WindowRow] = []
    for run in query.runs:
        found = connection.execute(_select(connection, query, run).limit(MAX_ROWS + 1 - len(rows))).all()
        for index, requests, put, out, micro, *group in found:
            start = run.start_ms + int(index) * run.length_ms
            sums = (int(requests), int(put), int(out), int(micro))
            rows.append(WindowRow(start, start + run.length_ms, tuple(group), *sums))
        if len(rows) > MAX_ROWS:
            raise TooManyRowsError
    return rows


def _select(connection: sa.Connection, query: WindowQuery, run: Run) -> sa.Select[Any]:
    table: sa.Table = schema.usage if query.by_call else schema.rollups
    at = table.c.created_ms if query.by_call else table.c.quarter_ms
    # Written out, not bound: PostgreSQL must see that what is selected is what is grouped by.
    index: sa.ColumnElement[int] = sa.literal_column(f"({at.name} - {run.start_ms}) / {run.length_ms}")
    columns = [table.c[_COLUMNS[name]] for name in query.group_by]
    selected = (
        sa.select(index, *_sums(connection, query.by_call), *columns)
        .where(table.c.account == query.account, at >= run.start_ms, at < run.end_ms, table.c.status != "released")
        .group_by(index, *columns)
        .order_by(index, *columns)
    )
    for name, values in query.only.items():
        selected = selected.where(table.c[_COLUMNS[name]].in_(values))
    return selected


def _sums(connection: sa.Connection, by_call: bool) -> list[sa.ColumnElement[Any]]:
    if not by_call:
        table = schema.rollups
        return [sa.func.sum(table.c[name]) for name in ("calls", "input_tokens", "output_tokens", "charged_micro")]
    counts = schema.usage.c.counts

    def count(unit: str) -> sa.ColumnElement[Any]:
        if connection.dialect.name == "sqlite":
            return sa.func.coalesce(sa.func.sum(sa.func.json_extract(counts, f"$.{unit}")), 0)
        value = sa.cast(counts, postgresql.JSON)[unit].as_string()
        return sa.func.coalesce(sa.func.sum(sa.cast(value, sa.BigInteger)), 0)

    return [
        sa.func.count(),
        count("input_tokens"),
        count("output_tokens"),
        sa.func.sum(schema.usage.c.charged_micro),
    ]
