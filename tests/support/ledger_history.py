"""Calls of the past, written into a ledger as its own transactions would have: for reports' tests and bench."""

from collections.abc import Iterable
from typing import Any

import orjson
import sqlalchemy as sa

from tollway_serving.contract.units import charge_micro
from tollway_serving.ledger import schema
from tollway_serving.ledger.transaction import QUARTER_MS, ROLLUP_KEY, ROLLUP_SUMS

PRICES = {"input_tokens": 1_000_000, "output_tokens": 2_000_000}


def past_call(number: int, created_ms: int, **changes: Any) -> dict[str, Any]:
    """A row of the usage table; `input` and `output` are its tokens."""
    counts = {"input_tokens": changes.pop("input", 10), "output_tokens": changes.pop("output", 20), "requests": 1}
    micro = charge_micro(counts, PRICES)
    values: dict[str, Any] = {
        "charge_id": f"past-{number:012d}",
        "request_id": "past",
        "created_ms": created_ms,
        "settled_ms": created_ms + 1000,
        "account": "team/a0",
        "key_id": "team/k0",
        "key_subject": None,
        "plan": "ml/pro",
        "endpoint": "ChatCompletions",
        "model_id": "small",
        "revision": 1,
        "status": "ok",
        "http_status": 200,
        "error_code": None,
        "estimated": 0,
        "duration_ms": 1000,
        "first_token_ms": None,
        "fallback_from": None,
        "fallback_depth": 0,
        "held_micro": micro,
        "charged_micro": micro,
        "topup_micro": 0,
        "overrun_micro": 0,
        "held": orjson.dumps(counts).decode(),
        "counts": orjson.dumps(counts).decode(),
        "prices": orjson.dumps(PRICES).decode(),
    }
    return values | changes


def rolled_up(calls: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for call in calls:
        quarter = {"quarter_ms": call["created_ms"] - call["created_ms"] % QUARTER_MS}
        key = tuple((call | quarter)[name] for name in ROLLUP_KEY)
        row = found.setdefault(key, {**dict(zip(ROLLUP_KEY, key, strict=True)), **dict.fromkeys(ROLLUP_SUMS, 0)})
        row["calls"] += 1
        for name in ("charged_micro", "topup_micro", "overrun_micro"):
            row[name] += call[name]
        for unit, count in orjson.loads(call["counts"]).items():
            row[unit] += count
    return list(found.values())


def write_history(connection: sa.Connection, calls: list[dict[str, Any]]) -> None:
    connection.execute(sa.insert(schema.usage), calls)
    connection.execute(sa.insert(schema.rollups), rolled_up(calls))
