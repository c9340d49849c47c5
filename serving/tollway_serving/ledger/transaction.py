"""One database transaction's worth of operations, carried out in memory on the rows that a store has loaded.

Both stores do the same: say what rows the operations need (`needs`), load and lock them, `run` each operation, write
what `Work` says has changed, commit. All that differs between databases stays in the stores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from tollway_serving.contract.units import UNITS
from tollway_serving.ledger import idempotency
from tollway_serving.ledger.admit import Scope, admit, book, credits_left, rates
from tollway_serving.ledger.idempotency import Change, Key, Record
from tollway_serving.ledger.ops import (
    Begin,
    Begun,
    Cover,
    Forget,
    HoldClosed,
    Kept,
    NotAgain,
    Receipt,
    Refused,
    Reserve,
    Reserved,
    Settle,
    Stale,
    UnknownCharge,
)
from tollway_serving.ledger.settle import last_known, settle
from tollway_serving.ledger.state import (
    Charge,
    Hold,
    State,
    account_subject,
    decode,
    encode,
    give_back,
    hold_to_json,
    key_subject,
    repeat_to_text,
)
from tollway_serving.ledger.value import value

QUARTER_MS = 900_000

Row = tuple[Any, ...]
"""As a table's columns are listed at the end of this module."""

Result = Reserved | Refused | Stale | Receipt | Begun | Kept | NotAgain | Exception | None


@value
class Expire:
    """The reaper's: close this hold by what is last known of it. Only the stores make one."""

    charge_id: str


AnyOp = Reserve | Cover | Settle | Begin | Forget | Expire


@value
class EntryFacts:
    """What a reserve checks of a catalogue row again."""

    revision: int
    deleted: bool
    active: bool = True  # keys only, like the next
    expires_at: int | None = None  # seconds


@dataclass(slots=True)
class Subject:
    state: State
    first_key_ms: int | None


@value
class Needs:
    """Ids of the rows that some operations touch. A hold among `charges` brings its own subjects."""

    subjects: set[str]
    charges: set[str]
    opening: set[str]  # those of `charges` that no hold has yet, unless these operations are tried again
    closing: set[str]  # those of `charges` whose receipt is wanted where there is no hold any more
    entries: set[tuple[str, str]]
    records: set[Key]


def needs(ops: Iterable[AnyOp]) -> Needs:
    found = Needs(set(), set(), set(), set(), set(), set())
    for op in ops:
        if isinstance(op, Reserve):
            found.charges.add(op.charge_id)
            found.opening.add(op.charge_id)
            if op.replaces is not None:
                found.charges.add(op.replaces)
            found.subjects.add(account_subject(op.account))
            if (key := key_subject(op.key_uid, op.key_id, op.key_limits)) is not None:
                found.subjects.add(key)
            found.entries.update((("key", op.key_sha256), ("plan", op.plan), ("model", op.model_id)))
        elif isinstance(op, Begin | Forget):
            # The account's row is also the lock of its records.
            found.subjects.add(account_subject(op.account))
            if isinstance(op, Begin):
                found.records.add((op.account, op.route, op.name))
        else:
            found.charges.add(op.charge_id)
            if not isinstance(op, Cover):
                found.closing.add(op.charge_id)
    return found


def entry_facts(kind: str, revision: int, deleted: int, body: str) -> EntryFacts:
    if kind != "key" or deleted:
        return EntryFacts(revision, bool(deleted))
    raw = orjson.loads(body)
    return EntryFacts(revision, False, raw.get("state", "Active") == "Active", raw.get("expires_at"))


@dataclass(slots=True)
class Work:
    """The loaded rows, and what has become of them. `now` is the database's clock, read after the locks."""

    now: int
    revision: int
    subjects: dict[str, Subject]
    holds: dict[str, Hold]
    closed: dict[str, Receipt]
    entries: Mapping[tuple[str, str], EntryFacts]
    records: dict[Key, Record] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    opened: dict[str, Hold] = field(default_factory=dict)
    covered: dict[str, Hold] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    usage: list[Row] = field(default_factory=list)  # USAGE_COLUMNS
    record_changes: list[Change] = field(default_factory=list)  # in their order
    _rollups: dict[Row, list[int]] = field(default_factory=dict)  # ROLLUP_KEY: ROLLUP_SUMS

    def run(self, ops: Sequence[AnyOp]) -> list[Result]:
        """In their order. An operation that is wrong in itself answers its exception and changes nothing."""
        return [self._run(op) for op in ops]

    def _run(self, op: AnyOp) -> Result:
        try:
            if isinstance(op, Reserve):
                return self._reserve(op)
            if isinstance(op, Cover):
                self._cover(op)
                return None
            if isinstance(op, Settle):
                return self._settle(op)
            if isinstance(op, Begin):
                return self._begin(op)
            if isinstance(op, Forget):
                key = (op.account, op.route, op.name)
                self._change(idempotency.Drop(key, attempt=op.attempt))
                return None
            hold = self.holds.get(op.charge_id)
            return self._receipt(op.charge_id) if hold is None else self._close(hold, last_known(hold))
        except (ValueError, HoldClosed, UnknownCharge) as error:
            return error

    def _reserve(self, op: Reserve) -> Reserved | Refused | Stale:
        subject = account_subject(op.account)
        account = self.subjects[subject]
        narrowing = key_subject(op.key_uid, op.key_id, op.key_limits)
        known = self.holds.get(op.charge_id)
        now = max(self.now, account.state.clock)
        if narrowing is not None:
            now = max(now, self.subjects[narrowing].state.clock)
        refused = self._moved_on(op, now)
        if refused is not None:
            return refused
        scopes: tuple[Scope, ...] = (Scope(account.state, op.account_limits, account.first_key_ms),)
        if narrowing is not None:
            scopes = (*scopes, Scope(self.subjects[narrowing].state, op.key_limits, is_key=True))
        if known is not None:  # committed before its answer was lost
            return self._reserved(known, scopes, now)
        replaced = self.holds.get(op.replaces) if op.replaces is not None else None
        judged = scopes if replaced is None else self._without(replaced, scopes, now)
        decision = admit(judged, op, now, narrowing)
        if isinstance(decision, Refused):
            return replace(decision, rates=rates(scopes, now))
        if replaced is not None:
            self._close(replaced, Settle(replaced.charge_id, {}, "released"), moved=True)
        self._change(idempotency.point(op))
        book(scopes, decision, op, now)
        self.changed.add(subject)
        if narrowing is not None:
            self.changed.add(narrowing)
        self.holds[op.charge_id] = self.opened[op.charge_id] = decision
        return self._reserved(decision, scopes, now)

    @staticmethod
    def _without(hold: Hold, scopes: tuple[Scope, ...], now: int) -> tuple[Scope, ...]:
        """Copies, as if `hold` were gone already: a refusal then leaves everything as it was."""
        nothing = Charge({}, 0, 0, 0, 0)
        copies = []
        for scope in scopes:
            state = decode(encode(scope.state))
            if not scope.is_key or hold.key_subject is not None:
                give_back(state, hold, nothing, now, is_key=scope.is_key)
            copies.append(replace(scope, state=state))
        return tuple(copies)

    def _reserved(self, hold: Hold, scopes: tuple[Scope, ...], now: int) -> Reserved:
        return Reserved(
            charge_id=hold.charge_id,
            held_micro=hold.micro,
            output_tokens=hold.counts.get("output_tokens", 0),
            rates=rates(scopes, now),
            credits_left_micro=credits_left(scopes, now),
        )

    def _moved_on(self, op: Reserve, now: int) -> Refused | Stale | None:
        key = self.entries.get(("key", op.key_sha256))
        if key is None or key.deleted or not key.active:
            return Refused("invalid_api_key", "The API key is not valid.")
        if key.expires_at is not None and now >= key.expires_at * 1000:
            return Refused("expired_api_key", "The API key has expired.")
        if op.catalogue_revision >= self.revision:
            return None  # nothing is newer
        for kind, entry_id in (("key", op.key_sha256), ("plan", op.plan), ("model", op.model_id)):
            entry = self.entries.get((kind, entry_id))
            if entry is not None and entry.revision > op.catalogue_revision:
                return Stale(self.revision)
        return None

    def _cover(self, op: Cover) -> None:
        hold = self.holds.get(op.charge_id)
        if hold is None:
            raise HoldClosed(op.charge_id)
        prompt = hold.covered_prompt if op.prompt_tokens is None else op.prompt_tokens
        if op.output_tokens <= hold.covered_output and prompt == hold.covered_prompt:
            return
        hold = replace(hold, covered_output=max(op.output_tokens, hold.covered_output), covered_prompt=prompt)
        self.holds[op.charge_id] = hold
        (self.opened if op.charge_id in self.opened else self.covered)[op.charge_id] = hold

    def _settle(self, op: Settle) -> Receipt:
        hold = self.holds.get(op.charge_id)
        return self._receipt(op.charge_id) if hold is None else self._close(hold, op)

    def _receipt(self, charge_id: str) -> Receipt:
        if charge_id not in self.closed:
            raise UnknownCharge(charge_id)
        return self.closed[charge_id]

    def _begin(self, op: Begin) -> Begun | Kept | NotAgain:
        key = (op.account, op.route, op.name)
        now = max(self.now, self.subjects[account_subject(op.account)].state.clock)
        answer, record = idempotency.begin(op, self.records.get(key), now)
        if record is not None:
            self.records[key] = record
        self._change(record)
        return answer

    def _change(self, change: Change | None) -> None:
        if change is not None:
            self.record_changes.append(change)

    def _close(self, hold: Hold, op: Settle, *, moved: bool = False) -> Receipt:
        """`moved`: another hold of the same request takes its place."""
        op = idempotency.as_settled(hold, op)
        account = account_subject(hold.account)
        charge = settle(self.subjects[account].state, hold, op)
        now = max(self.now, self.subjects[account].state.clock)
        give_back(self.subjects[account].state, hold, charge, now, is_key=False)
        self.changed.add(account)
        if hold.key_subject is not None:
            give_back(self.subjects[hold.key_subject].state, hold, charge, now, is_key=True)
            self.changed.add(hold.key_subject)
        del self.holds[hold.charge_id]
        self.covered.pop(hold.charge_id, None)
        if self.opened.pop(hold.charge_id, None) is None:
            self.ended.append(hold.charge_id)
        self._record(hold, op, charge, now)
        if not moved:
            self._change(idempotency.close(hold, op, charge, now))
        receipt = Receipt(hold.charge_id, charge.micro, charge.overrun, charge.counts)
        self.closed[hold.charge_id] = receipt
        return receipt

    def _record(self, hold: Hold, op: Settle, charge: Charge, now: int) -> None:
        self.usage.append(
            (
                hold.charge_id,
                hold.request_id,
                hold.created,
                now,
                hold.account,
                hold.key_id,
                hold.key_subject,
                hold.plan,
                hold.endpoint,
                hold.model_id,
                hold.revision,
                op.status,
                op.http_status,
                op.error_code,
                int(op.estimated),
                op.duration_ms,
                op.first_token_ms,
                op.fallback_from,
                op.fallback_depth,
                hold.micro,
                charge.micro,
                charge.topup,
                charge.overrun,
                orjson.dumps(hold.counts).decode(),
                orjson.dumps(charge.counts).decode(),
                orjson.dumps(hold.prices).decode(),
            )
        )
        quarter = hold.created - hold.created % QUARTER_MS
        dimensions = (hold.account, quarter, hold.key_id, hold.model_id, hold.endpoint, op.status)
        sums = self._rollups.get(dimensions)
        if sums is None:
            sums = self._rollups[dimensions] = [0] * len(ROLLUP_SUMS)
        sums[0] += 1
        sums[1] += charge.micro
        sums[2] += charge.topup
        sums[3] += charge.overrun
        for unit, count in charge.counts.items():
            sums[_SUM_OF[unit]] += count

    def subject_rows(self) -> list[Row]:
        return [(name, encode(self.subjects[name].state)) for name in sorted(self.changed)]

    def opened_rows(self) -> list[Row]:
        return [
            (
                hold.charge_id,
                hold.account,
                hold.key_subject,
                hold.owner,
                hold.model_id,
                hold.deadline,
                hold.covered_output,
                hold.covered_prompt,
                hold_to_json(hold),
                repeat_to_text(hold.repeat),
            )
            for hold in self.opened.values()
        ]

    def covered_rows(self) -> list[Row]:
        return [(hold.charge_id, hold.covered_output, hold.covered_prompt) for hold in self.covered.values()]

    def rollup_rows(self) -> list[Row]:
        return [(*dimensions, *sums) for dimensions, sums in self._rollups.items()]


# What `Work` gives rows of, column by column.
SUBJECT_COLUMNS = ("id", "state")
HOLD_COLUMNS = (
    *("charge_id", "account", "key_subject", "owner", "model_id", "deadline_ms"),
    *("covered_output", "covered_prompt", "body", "idempotency"),
)
COVER_COLUMNS = ("charge_id", "covered_output", "covered_prompt")
USAGE_COLUMNS = (
    *("charge_id", "request_id", "created_ms", "settled_ms", "account", "key_id", "key_subject", "plan", "endpoint"),
    *("model_id", "revision", "status", "http_status", "error_code", "estimated", "duration_ms", "first_token_ms"),
    *("fallback_from", "fallback_depth", "held_micro", "charged_micro", "topup_micro", "overrun_micro"),
    *("held", "counts", "prices"),
)
ROLLUP_KEY = ("account", "quarter_ms", "key_id", "model_id", "endpoint", "status")
ROLLUP_SUMS = ("calls", "charged_micro", "topup_micro", "overrun_micro", *UNITS)
ROLLUP_COLUMNS = (*ROLLUP_KEY, *ROLLUP_SUMS)
_SUM_OF = {name: place for place, name in enumerate(ROLLUP_SUMS)}
