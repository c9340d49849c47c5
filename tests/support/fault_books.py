"""Holds the books of a fault suite against what its clients received: while it runs, and when it is over."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa
from support.fault_load import ACCOUNTS, NARROWED, Sent

from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database, in_snapshot, now_ms
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.state import State, decode, key_subject

LATE_MS = 10_000
"""A reaper looks every five seconds, and is slower on a busy machine."""

_STEPS = (256, 768, 1792, 2816, 3840)
"""What a stream is covered up to, in turn."""


@dataclass
class Looks:
    """What was seen of the books from outside while they were in use."""

    number: int = 0
    late_holds: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    async def keep_looking(self, url: Any) -> None:
        """`url()` is where the books are at the moment."""
        while True:
            await asyncio.sleep(0.25)
            database = Database(url())
            try:
                await database.read(self._look)
            except LedgerUnavailable:
                pass
            finally:
                await database.close()

    def _look(self, connection: sa.Connection) -> None:
        in_snapshot(connection)
        now = now_ms(connection)
        late = sa.select(schema.holds.c.charge_id).where(schema.holds.c.deadline_ms < now - LATE_MS)
        self.late_holds.update(connection.scalars(late))
        grants = sa.select(schema.grants.c.account, sa.func.sum(schema.grants.c.micro)).group_by(
            schema.grants.c.account
        )
        granted = {account: int(micro) for account, micro in connection.execute(grants)}
        for name, text in connection.execute(sa.select(schema.subjects.c.id, schema.subjects.c.state)):
            for account, limits in ACCOUNTS.items():
                if name == f"account:ml/{account}":
                    self._within(name, decode(text), limits, granted.get(f"ml/{account}", 0))
            if name == key_subject("uid-many", "ml/many", NARROWED):
                self._within(name, decode(text), NARROWED, 0)
        self.number += 1

    def _within(self, name: str, state: State, limits: Limits, granted: int) -> None:
        if limits.concurrent_requests is not None and state.open > limits.concurrent_requests:
            self.problems.append(f"{name}: {state.open} calls at once")
        taken = sum(sum(pair) for pair in state.credits.values()) + state.topup[1] + state.topup[2]
        if limits.credits_monthly_micro is not None and taken > limits.credits_monthly_micro + granted:
            self.problems.append(f"{name}: {taken} micro-credits of {limits.credits_monthly_micro} + {granted}")
        for quota in limits.quotas:
            for period, models in state.counts.items():
                tokens = sum(
                    sum(pair)
                    for units in models.values()
                    for unit, pair in units.items()
                    if unit in ("input_tokens", "output_tokens")
                )
                if period.count("-") == 2 and tokens > quota.limit:  # a day's
                    self.problems.append(f"{name}: {tokens} tokens in {period}, {quota.limit} allowed")


@dataclass
class Findings:
    """`problems` has every difference, in words."""

    requests: int = 0
    answers: int = 0
    refused: int = 0  # by a limit
    unavailable: int = 0
    unanswered: int = 0
    streams_cut: int = 0
    compared: int = 0
    charged_unanswered: int = 0  # work done whose client was told that the ledger is away, or nothing at all
    most_beyond: int = 0  # tokens charged beyond those that arrived
    problems: list[str] = field(default_factory=list)


async def compare(url: str, sent: Iterable[Sent]) -> Findings:
    """After the last answer, when no hold is open any more."""
    database = Database(url, limit_s=60)
    try:
        rows = await database.read(lambda connection: connection.execute(sa.select(schema.usage)).all())
    finally:
        await database.close()
    by_request: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row.status != "released":
            by_request[row.request_id].append(row)
    found = Findings()
    same: dict[str, list[Sent]] = defaultdict(list)
    for each in sent:
        found.requests += 1
        found.refused += each.status == 429
        found.unavailable += each.unavailable
        found.unanswered += each.status == 0
        if each.same_as is not None:
            same[each.same_as].append(each)
        else:
            _one(found, each, by_request.pop(each.request_id, []))
    for name, tries in same.items():
        _repeated(found, name, tries, [row for each in tries for row in by_request.pop(each.request_id, [])])
    found.problems += [f"{request}: charged and never sent" for request in by_request]
    return found


def _one(found: Findings, sent: Sent, rows: list[Any]) -> None:
    found.compared += len(rows)
    if sum(row.charged_micro > 0 for row in rows) > 1:
        found.problems.append(f"{sent.request_id}: charged {len(rows)} times")
    row = next((row for row in rows if row.charged_micro > 0), None)
    if sent.answered:
        found.answers += 1
        _receipt(found, sent, row)
    elif sent.status == 200 and sent.streamed:
        found.streams_cut += 1
        _cut(found, sent, row)
    elif sent.status in (0, 200, 503):  # 200: uvicorn writes head and body one after the other; killed in between
        found.charged_unanswered += row is not None
    elif row is not None:
        found.problems.append(f"{sent.request_id}: refused with {sent.code} and charged: {sent}, {tuple(row)}")


def _receipt(found: Findings, sent: Sent, row: Any) -> None:
    if row is None:
        found.problems.append(f"{sent.request_id}: answered and not charged")
    elif (sent.charge_id, sent.micro) != (row.charge_id, row.charged_micro):
        found.problems.append(f"{sent.request_id}: its receipt says {sent.micro}, the books {row.charged_micro}")
    elif _tokens(row) != sent.tokens and not row.estimated:
        found.problems.append(f"{sent.request_id}: {sent.tokens} tokens arrived, {_tokens(row)} are charged")


def _cut(found: Findings, sent: Sent, row: Any) -> None:
    if row is None:
        if sent.tokens:
            found.problems.append(f"{sent.request_id}: {sent.tokens} tokens arrived and nothing is charged")
        return
    found.most_beyond = max(found.most_beyond, _tokens(row) - sent.tokens)
    if _tokens(row) < sent.tokens:
        found.problems.append(f"{sent.request_id}: {sent.tokens} tokens arrived, only {_tokens(row)} are charged")
    if _tokens(row) > _a_step_beyond(sent.tokens):
        found.problems.append(f"{sent.request_id}: {sent.tokens} tokens arrived, {_tokens(row)} are charged")


def _a_step_beyond(tokens: int) -> int:
    """To the end of the step that they are in, and one more."""
    at = next(number for number, end in enumerate(_STEPS) if end >= tokens)
    return _STEPS[at + 1]


def _repeated(found: Findings, name: str, tries: list[Sent], rows: list[Any]) -> None:
    """One charge for all tries of a POST, and each answer has its receipt."""
    found.compared += len(rows)
    charged = [row for row in rows if row.charged_micro > 0]
    answered = [each for each in tries if each.answered]
    found.answers += len(answered)
    if len(charged) > 1:
        found.problems.append(f"{name}: charged {len(charged)} times")
    for each in answered:
        _receipt(found, each, charged[0] if charged else None)
    if charged and not answered:
        found.charged_unanswered += 1


def _tokens(row: Any) -> int:
    return int(orjson.loads(row.counts).get("output_tokens", 0))
