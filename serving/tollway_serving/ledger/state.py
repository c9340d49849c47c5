"""What the ledger remembers of one subject, an account or a narrowed key; `admit` reads it, a transaction stores it.

A subject is one row with one JSON document, so that a request locks, reads and writes one row however many limits it
has. Counts are kept by period, model and unit, never by quota: a changed plan or model group resets nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from tollway_serving.contract.catalogue import Limits
from tollway_serving.contract.units import Unit
from tollway_serving.ledger.ops import Repeat
from tollway_serving.ledger.periods import period_keys
from tollway_serving.ledger.value import value

MINUTE_MS = 60_000
"""A bucket's level is in 1/60,000 of a request or token: a limit of N a minute then refills N of them a millisecond."""

Counts = dict[str, dict[str, dict[str, list[int]]]]
"""period key -> model id -> unit -> [settled, held]"""


@dataclass(slots=True)
class State:
    """Mutable, and owned by the transaction that loaded it."""

    clock: int = 0  # newest time seen, ms: the next decision is never earlier
    open: int = 0  # holds
    pace: int = 0  # moving average of how long a hold lives, ms
    requests: list[int] | None = None  # [level, at ms] of the requests bucket
    tokens: list[int] | None = None
    counts: Counts = field(default_factory=dict)
    credits: dict[str, list[int]] = field(default_factory=dict)  # month -> [settled, held], without the top-ups' part
    topup: list[int] = field(default_factory=lambda: [0, 0, 0])  # granted, used, held
    trial: list[int] = field(default_factory=lambda: [0, 0])  # an account's successful requests ever, held
    pairs: dict[tuple[str, str], dict[str, tuple[list[int], ...]]] = field(default_factory=dict, compare=False)
    """(day, model id) -> unit -> its pairs in `counts` for that day's periods: found once, not for each request."""


@value
class Hold:
    """What one request has taken. `counts` has all of it, the output granted included."""

    charge_id: str
    request_id: str
    owner: str
    account: str
    key_id: str
    key_subject: str | None  # the key's own state, where it narrows anything
    plan: str
    endpoint: str
    model_id: str
    revision: int
    created: int  # ms; the request belongs to the periods of this moment
    deadline: int  # ms
    counts: Mapping[Unit, int]
    prices: Mapping[Unit, int]
    micro: int
    topup: int  # the part of `micro` that the account's top-ups stand for
    monthly_limit: int | None  # the account's, as it was: settling fills it before the top-ups
    covered_output: int = 0
    covered_prompt: int | None = None
    repeat: Repeat | None = None

    @property
    def tokens(self) -> int:
        return self.counts.get("input_tokens", 0) + self.counts.get("output_tokens", 0)


@value
class Charge:
    """How a hold ends."""

    counts: Mapping[Unit, int]  # as used
    micro: int
    overrun: int
    topup: int
    requests: int  # 1 if it counts as a successful request


def account_subject(account: str) -> str:
    return f"account:{account}"


def key_subject(uid: str, key_id: str, limits: Limits) -> str | None:
    """A key has a state of its own only where it narrows its plan."""
    return f"key:{uid or key_id}" if limits.binds() else None


def encode(state: State) -> str:
    document: dict[str, Any] = {"t": state.clock, "o": state.open, "p": state.pace}
    if state.requests is not None:
        document["r"] = state.requests
    if state.tokens is not None:
        document["k"] = state.tokens
    document["n"] = state.counts
    document["c"] = state.credits
    if any(state.topup):
        document["u"] = state.topup
    if any(state.trial):
        document["s"] = state.trial
    return orjson.dumps(document).decode()


def decode(text: str) -> State:
    raw = orjson.loads(text)
    return State(
        clock=raw.get("t", 0),
        open=raw.get("o", 0),
        pace=raw.get("p", 0),
        requests=raw.get("r"),
        tokens=raw.get("k"),
        counts=raw.get("n") or {},
        credits=raw.get("c") or {},
        topup=raw.get("u") or [0, 0, 0],
        trial=raw.get("s") or [0, 0],
    )


def level(bucket: list[int] | None, per_minute: int, now: int) -> int:
    """A bucket's level now, in 1/60,000; one that was never used is full."""
    full = per_minute * MINUTE_MS
    if bucket is None:
        return full
    refilled = bucket[0] + (now - bucket[1]) * per_minute if now > bucket[1] else bucket[0]
    return refilled if refilled < full else full


def take(
    state: State,
    hold: Hold,
    now: int,
    *,
    is_key: bool,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
) -> None:
    """Books an admitted hold."""
    state.clock = now
    state.open += 1
    if requests_per_minute is not None:
        state.requests = [level(state.requests, requests_per_minute, now) - MINUTE_MS, now]
    if tokens_per_minute is not None:
        state.tokens = [level(state.tokens, tokens_per_minute, now) - hold.tokens * MINUTE_MS, now]
    keys = period_keys(now)
    pairs = _pairs(state, keys, hold)
    for unit, count in hold.counts.items():
        for pair in pairs[unit]:
            pair[1] += count
    if len(state.counts) > len(keys):
        _prune(state, keys)
    _month(state, keys[2])[1] += hold.micro if is_key else hold.micro - hold.topup
    if not is_key:
        state.topup[2] += hold.topup
        state.trial[1] += hold.counts.get("requests", 0)


def give_back(state: State, hold: Hold, charge: Charge, now: int, *, is_key: bool) -> None:
    """Ends a hold with its charge. A key's month counts all of it, the account's what no top-up stands for."""
    held, charged = (hold.micro, charge.micro) if is_key else (hold.micro - hold.topup, charge.micro - charge.topup)
    state.clock = max(state.clock, now)
    state.open -= 1
    state.pace = (state.pace * 7 + max(0, now - hold.created)) // 8
    keys = period_keys(hold.created)
    pairs = _pairs(state, keys, hold)
    for unit, count in hold.counts.items():
        used = min(count, charge.counts.get(unit, 0))
        for pair in pairs[unit]:
            pair[0] += used
            pair[1] -= count
    month = _month(state, keys[2])
    month[0] += charged
    month[1] -= held
    if not is_key:
        state.topup[1] += charge.topup
        state.topup[2] -= hold.topup
        state.trial[0] += charge.requests
        state.trial[1] -= hold.counts.get("requests", 0)
    if state.tokens is not None:
        used = charge.counts.get("input_tokens", 0) + charge.counts.get("output_tokens", 0)
        # What was estimated too high goes back; the next reserve cuts the level at the bucket's size.
        state.tokens[0] += max(0, hold.tokens - used) * MINUTE_MS


def month_used(state: State, now: int) -> tuple[int, int]:
    """Micro-credits (settled, held) of the month that `now` lies in."""
    settled, held = state.credits.get(period_keys(now)[2], (0, 0))
    return settled, held


def _pairs(state: State, keys: tuple[str, ...], hold: Hold) -> dict[str, tuple[list[int], ...]]:
    """Those of each unit that the hold has."""
    name = (keys[0], hold.model_id)
    pairs = state.pairs.get(name)
    if pairs is None:
        pairs = state.pairs[name] = {}
    for unit in hold.counts:
        if unit not in pairs:
            models = [state.counts.setdefault(key, {}) for key in keys]
            units = [by_model.setdefault(hold.model_id, {}) for by_model in models]
            pairs[unit] = tuple(by_unit.setdefault(unit, [0, 0]) for by_unit in units)
    return pairs


def _month(state: State, month: str) -> list[int]:
    pair = state.credits.get(month)
    if pair is None:
        pair = state.credits[month] = [0, 0]
    return pair


def _prune(state: State, current: tuple[str, ...]) -> None:
    """Forgets past periods without a hold; every hold counts at least its request, so none is forgotten too early."""
    for key in [key for key in state.counts if key not in current]:
        if not any(pair[1] for units in state.counts[key].values() for pair in units.values()):
            del state.counts[key]
            state.pairs.clear()
    for key in [key for key in state.credits if key != current[2] and key not in state.counts]:
        del state.credits[key]


def hold_to_json(hold: Hold) -> str:
    """All of it but what the row has in columns of its own."""
    return orjson.dumps(
        {
            "request_id": hold.request_id,
            "key_id": hold.key_id,
            "plan": hold.plan,
            "endpoint": hold.endpoint,
            "revision": hold.revision,
            "created": hold.created,
            "counts": hold.counts,
            "prices": hold.prices,
            "micro": hold.micro,
            "topup": hold.topup,
            "monthly_limit": hold.monthly_limit,
        }
    ).decode()


def hold_from_row(row: Mapping[str, Any]) -> Hold:
    """`row` has the columns of schema.holds."""
    return Hold(
        charge_id=row["charge_id"],
        owner=row["owner"],
        account=row["account"],
        key_subject=row["key_subject"],
        model_id=row["model_id"],
        deadline=row["deadline_ms"],
        covered_output=row["covered_output"],
        covered_prompt=row["covered_prompt"],
        repeat=repeat_from_text(row["idempotency"]),
        **cast("dict[str, Any]", orjson.loads(row["body"])),
    )


def repeat_to_text(repeat: Repeat | None) -> str | None:
    return (
        None if repeat is None else orjson.dumps([repeat.route, repeat.name, repeat.attempt, repeat.streamed]).decode()
    )


def repeat_from_text(text: str | None) -> Repeat | None:
    return None if text is None else Repeat(*orjson.loads(text))
