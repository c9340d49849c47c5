"""A POST that its client may send again: what becomes of the second one. Pure; called by `transaction`.

Of each Idempotency-Key an account has one record a route. It is opened before the hold, points to the hold once there
is one, and is closed in the transaction that settles it: an answer is kept if and only if it was charged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from tollway_serving.ledger.ops import Answer, Begin, Begun, Kept, NotAgain, Reserve, Settle
from tollway_serving.ledger.state import Charge, Hold
from tollway_serving.ledger.value import value

KEEP_MS = 24 * 3_600_000
OPEN_MS = 2 * 3_600_000
"""Longer than any call may take (timeouts.total is at most an hour): an open record past it was left behind."""

Key = tuple[str, str, str]  # account, route, name


@dataclass(frozen=True, slots=True)
class Record:
    """open: being answered. kept: `body` is the answer. sent: charged, and can't be given again."""

    account: str
    route: str
    name: str
    attempt: str  # that opened it
    body_sha256: str
    owner: str
    state: Literal["open", "kept", "sent"]
    charge_id: str | None
    created_ms: int
    expires_ms: int
    charged_micro: int = 0
    headers: str = "[]"
    body: bytes | None = None

    @property
    def key(self) -> Key:
        return self.account, self.route, self.name


@value
class Point:
    """Change of a record: it belongs to this hold now."""

    key: Key
    attempt: str
    charge_id: str


@value
class Close:
    """Change of the record of `charge_id`: `body` None: sent."""

    key: Key
    charge_id: str
    charged_micro: int
    expires_ms: int
    answer: Answer | None


@value
class Drop:
    """Change: the record of `charge_id`, or the one that `attempt` opened if no hold belongs to it, is gone."""

    key: Key
    charge_id: str | None = None
    attempt: str | None = None


Change = Record | Point | Close | Drop


def record_from_row(row: Mapping[str, Any]) -> Record:
    """`row` has the columns of schema.idempotency."""
    return Record(**{name: row[name] for name in Record.__slots__})


def begin(op: Begin, known: Record | None, now: int) -> tuple[Begun | Kept | NotAgain, Record | None]:
    """The answer, and the record to write."""
    if known is not None and known.attempt == op.attempt:
        return Begun(), None  # committed before its answer was lost
    if known is None or (known.state != "open" and known.expires_ms <= now):
        return Begun(), Record(
            account=op.account,
            route=op.route,
            name=op.name,
            attempt=op.attempt,
            body_sha256=op.body_sha256,
            owner=op.owner,
            state="open",
            charge_id=None,
            created_ms=now,
            expires_ms=now + OPEN_MS,
        )
    if known.body_sha256 != op.body_sha256:
        return NotAgain("idempotency_mismatch"), None
    if known.state == "open":
        return NotAgain("idempotency_in_progress"), None
    if known.body is None:
        return NotAgain("idempotency_not_replayable"), None
    headers = tuple((name, value) for name, value in orjson.loads(known.headers))
    return Kept(Answer(headers, known.body), known.charged_micro), None


def point(op: Reserve) -> Point | None:
    """The record's change when its hold is made."""
    if op.repeat is None:
        return None
    return Point((op.account, op.repeat.route, op.repeat.name), op.repeat.attempt, op.charge_id)


def as_settled(hold: Hold, op: Settle) -> Settle:
    """Whoever may ask again for an answer that comes whole pays for the one that came, not for one that was lost."""
    if hold.repeat is None or hold.repeat.streamed or op.status == "ok":
        return op
    return replace(op, counts={})


def close(hold: Hold, op: Settle, charge: Charge, now: int) -> Change | None:
    """The record's change when its hold ends."""
    if hold.repeat is None:
        return None
    key = (hold.account, hold.repeat.route, hold.repeat.name)
    if op.status != "ok" and not charge.micro and not charge.counts.get("output_tokens"):
        return Drop(key, charge_id=hold.charge_id)  # nothing was charged or sent: the next one may try
    return Close(key, hold.charge_id, charge.micro, now + KEEP_MS, op.answer if op.status == "ok" else None)
