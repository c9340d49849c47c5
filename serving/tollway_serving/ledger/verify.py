"""Proof that the books are right: `tollway usage verify` and the tests recompute every account from its rows.

Each hold must end as exactly one usage row, each row must follow from its counts, prices and hold, each subject must
be the sum of its rows and open holds, and the roll-ups must be the sum of the rows. Read in one snapshot, beside a
running system.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from tollway_serving.contract.units import charge_micro
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import REPORT_LIMIT_S, Database, in_snapshot, now_ms
from tollway_serving.ledger.periods import key_bounds, period_keys
from tollway_serving.ledger.state import Hold, State, account_subject, decode, hold_from_row
from tollway_serving.ledger.transaction import QUARTER_MS, ROLLUP_KEY, ROLLUP_SUMS
from tollway_serving.ledger.version import check_version

LATE_MS = 60_000
"""A reaper looks every few seconds: a hold that is further past its deadline is a problem."""

_PAGE = 20_000
_MAX_PROBLEMS = 1_000


@dataclass(slots=True)
class Report:
    """`problems` is empty where everything adds up; it stops at a thousand."""

    subjects: int = 0
    usage_rows: int = 0
    open_holds: int = 0
    charged_micro: int = 0
    overrun_micro: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.problems

    def problem(self, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)


async def verify(url: str) -> Report:
    """Raises LedgerUnavailable where the database can't be read."""
    database = Database(url, limit_s=REPORT_LIMIT_S)
    try:
        await database.read(check_version)
        return await database.read(verify_connection)
    finally:
        await database.close()


def verify_connection(connection: sa.Connection) -> Report:
    in_snapshot(connection)
    report = Report()
    stored = {
        row.id: decode(row.state)
        for row in connection.execute(sa.select(schema.subjects.c.id, schema.subjects.c.state))
    }
    report.subjects = len(stored)
    kept_from = connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.name == "usage_from_ms")) or 0
    books = Books(report, stored, kept_from)
    now = now_ms(connection)
    for mapping in connection.execute(sa.select(schema.holds)).mappings():
        books.hold(hold_from_row(dict(mapping)), now)
    for charge in _usage_rows(connection, kept_from):
        books.row(charge)
    for row in connection.execute(
        sa.select(schema.grants.c.account, sa.func.sum(schema.grants.c.micro).label("sum")).group_by(
            schema.grants.c.account
        )
    ):
        books.expected(account_subject(row.account)).topup[0] = int(row.sum)
    _lifetimes(connection, books)
    books.compare()
    _rollups(connection, report, books.sums, kept_from)
    _answers(connection, report, kept_from)
    return report


class Books:
    """Sums up rows and holds into the states that the subjects should have."""

    def __init__(self, report: Report, stored: dict[str, State], kept_from: int) -> None:
        self._report = report
        self._kept_from = kept_from
        self._stored = stored
        self._expected: dict[str, State] = {}
        self._held_ids: set[str] = set()
        self.sums: dict[tuple[object, ...], Counter[str]] = {}

    def expected(self, name: str) -> State:
        return self._expected.setdefault(name, State())

    def hold(self, hold: Hold, now: int) -> None:
        self._report.open_holds += 1
        self._held_ids.add(hold.charge_id)
        if hold.deadline + LATE_MS < now:
            self._report.problem(f"hold {hold.charge_id} is {(now - hold.deadline) // 1000} s past its deadline")
        keys = period_keys(hold.created)
        for name, is_key in _subjects(hold.account, hold.key_subject):
            state = self.expected(name)
            state.open += 1
            state.trial[1] += 0 if is_key else hold.counts.get("requests", 0)
            state.credits.setdefault(keys[2], [0, 0])[1] += hold.micro if is_key else hold.micro - hold.topup
            state.topup[2] += 0 if is_key else hold.topup
            for key in keys:
                for unit, count in hold.counts.items():
                    self._pair(state, key, hold.model_id, unit)[1] += count

    def row(self, row: sa.Row[Any]) -> None:
        report = self._report
        report.usage_rows += 1
        report.charged_micro += row.charged_micro
        report.overrun_micro += row.overrun_micro
        counts, held, prices = orjson.loads(row.counts), orjson.loads(row.held), orjson.loads(row.prices)
        if row.charge_id in self._held_ids:
            report.problem(f"charge {row.charge_id} is settled and still held")
        if row.charged_micro + row.overrun_micro != charge_micro(counts, prices):
            report.problem(f"charge {row.charge_id} is not its counts at its prices")
        if not 0 <= row.topup_micro <= row.charged_micro <= row.held_micro or row.held_micro != charge_micro(
            held, prices
        ):
            report.problem(f"charge {row.charge_id} is more than its hold")
        dimensions = tuple(
            row.created_ms - row.created_ms % QUARTER_MS if name == "quarter_ms" else getattr(row, name)
            for name in ROLLUP_KEY
        )
        sums = self.sums.setdefault(dimensions, Counter())
        sums.update(counts)
        sums.update({"calls": 1, "charged_micro": row.charged_micro, "overrun_micro": row.overrun_micro})
        sums.update({"topup_micro": row.topup_micro})
        keys = period_keys(row.created_ms)
        for name, is_key in _subjects(row.account, row.key_subject):
            state = self.expected(name)
            month = state.credits.setdefault(keys[2], [0, 0])
            month[0] += row.charged_micro - (0 if is_key else row.topup_micro)
            state.topup[1] += 0 if is_key else row.topup_micro
            for key in keys:
                for unit, count in held.items():
                    self._pair(state, key, row.model_id, unit)[0] += min(count, counts.get(unit, 0))

    @staticmethod
    def _pair(state: State, key: str, model: str, unit: str) -> list[int]:
        return state.counts.setdefault(key, {}).setdefault(model, {}).setdefault(unit, [0, 0])

    def compare(self) -> None:
        """Past periods that a subject has forgotten, or whose rows are not kept any more, are not compared: nothing is
        decided by them any more."""
        for name in sorted(self._expected.keys() | self._stored.keys()):
            want, have = self._expected.get(name, State()), self._stored.get(name)
            if have is None:
                self._report.problem(f"{name} has rows but no state")
                continue
            for what, wanted, found in (
                ("calls in flight", want.open, have.open),
                ("top-ups", want.topup, have.topup),
                ("successful requests", want.trial, have.trial),
            ):
                if wanted != found:
                    self._report.problem(f"{name}: {what} are {found}, the rows say {wanted}")
            for month, pair in have.credits.items():
                if self._kept(month) and pair != want.credits.get(month, [0, 0]):
                    self._report.problem(
                        f"{name}: credits of {month} are {pair}, the rows say {want.credits.get(month)}"
                    )
            for key, models in have.counts.items():
                if not self._kept(key):
                    continue
                wanted_models = _plain(want.counts.get(key, {}))
                if _plain(models) != wanted_models:
                    self._report.problem(f"{name}: counts of {key} are {_plain(models)}, the rows say {wanted_models}")
            for key, models in want.counts.items():
                if key not in have.counts and any(pair[1] for units in models.values() for pair in units.values()):
                    self._report.problem(f"{name}: holds of {key} are forgotten")

    def _kept(self, period: str) -> bool:
        return key_bounds(period)[0] >= self._kept_from


def _plain(models: dict[str, dict[str, list[int]]]) -> dict[tuple[str, str], list[int]]:
    return {(model, unit): pair for model, units in models.items() for unit, pair in units.items() if any(pair)}


def _subjects(account: str, key_subject: str | None) -> list[tuple[str, bool]]:
    own = [(account_subject(account), False)]
    return own if key_subject is None else [*own, (key_subject, True)]


def _usage_rows(connection: sa.Connection, kept_from: int) -> Iterator[sa.Row[Any]]:
    """In pages by charge id, so that fifty million rows need no memory."""
    last, table = "", schema.usage
    while page := connection.execute(
        sa.select(table)
        .where(table.c.charge_id > last, table.c.created_ms >= kept_from)
        .order_by(table.c.charge_id)
        .limit(_PAGE)
    ).all():
        yield from page
        last = page[-1].charge_id


def _lifetimes(connection: sa.Connection, books: Books) -> None:
    """What was ever used comes from the roll-ups: usage rows may be older than their retention. Roll-ups have no key
    subject, so this is for accounts."""
    table = schema.rollups
    rows = connection.execute(
        sa.select(
            table.c.account, sa.func.sum(table.c.topup_micro).label("topup"), sa.func.sum(table.c.requests).label("ok")
        ).group_by(table.c.account)
    )
    for row in rows:
        state = books.expected(account_subject(row.account))
        state.topup[1], state.trial[0] = int(row.topup), int(row.ok)


def _rollups(
    connection: sa.Connection, report: Report, sums: dict[tuple[object, ...], Counter[str]], kept_from: int
) -> None:
    table = schema.rollups
    seen = set()
    for row in connection.execute(sa.select(table).where(table.c.quarter_ms >= kept_from)):
        dimensions = tuple(getattr(row, name) for name in ROLLUP_KEY)
        seen.add(dimensions)
        wanted = sums.get(dimensions, Counter())
        if any(getattr(row, name) != wanted[name] for name in ROLLUP_SUMS):
            report.problem(f"roll-up {dimensions} is not the sum of its rows")
    for dimensions in sums.keys() - seen:
        report.problem(f"roll-up {dimensions} is missing")


def _answers(connection: sa.Connection, report: Report, kept_from: int) -> None:
    """An answer is kept for repetition if and only if it was charged, with the sum that was charged."""
    table, usage = schema.idempotency, schema.usage
    rows = connection.execute(
        sa.select(table.c.charge_id, table.c.charged_micro, usage.c.charged_micro.label("row"))
        .select_from(sa.outerjoin(table, usage, table.c.charge_id == usage.c.charge_id))
        .where(table.c.state != "open", table.c.created_ms >= kept_from)
    )
    for row in rows:
        if row.row != row.charged_micro:
            report.problem(f"the answer of charge {row.charge_id} is kept for {row.charged_micro}, it cost {row.row}")
