"""Ledgers for tests: a small catalogue, and operations with everything filled in that a test does not care about."""

import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tollway_serving.contract.catalogue import Catalogue, KeyEntry, Limits, ModelEntry, PlanEntry, Target
from tollway_serving.ledger.ops import Reserve, Settle, SettleStatus
from tollway_serving.ledger.publish import DatabasePublisher, open_publisher
from tollway_serving.ledger.store import Store, open_ledger

PRICES = {"input_tokens": 1_000_000, "output_tokens": 2_000_000}
"""One micro-credit for a token in, two for a token out."""

_ids = itertools.count()


def charge_id() -> str:
    """Sorted by age like the gateway's UUIDv7, and unique among processes."""
    return f"{time.time_ns():020d}-{os.getpid()}-{next(_ids)}"


def catalogue(*, accounts: int = 1, models: tuple[str, ...] = ("small", "large"), **plan: Any) -> Catalogue:
    """Keys "hash-0"... of accounts "team/a0"..., all on the plan "ml/pro"."""
    return Catalogue(
        models=tuple(
            ModelEntry(
                model_id=name,
                name=f"ml/{name}",
                endpoints=("ChatCompletions",),
                context_tokens=4096,
                output_tokens=1024,
                default_output_tokens=256,
                target=Target(url="http://127.0.0.1:1/v1", model=name),
                prices=PRICES,
            )
            for name in models
        ),
        plans=(PlanEntry(name="ml/pro", display_name="Pro", model_ids=models, **plan),),
        keys=tuple(
            KeyEntry(sha256=f"hash-{i}", key_id=f"team/k{i}", uid=f"uid-{i}", account=f"team/a{i}", plan="ml/pro")
            for i in range(accounts)
        ),
    )


def reserve(account: int = 0, **changes: Any) -> Reserve:
    """10 tokens in and 20 out, explicit: 50 micro-credits; no limits."""
    values: dict[str, Any] = {
        "charge_id": charge_id(),
        "request_id": "request",
        "owner": "gateway",
        "key_sha256": f"hash-{account}",
        "key_id": f"team/k{account}",
        "key_uid": f"uid-{account}",
        "account": f"team/a{account}",
        "plan": "ml/pro",
        "endpoint": "ChatCompletions",
        "model_id": "small",
        "catalogue_revision": 1,
        "account_limits": Limits(),
        "key_limits": Limits(),
        "prompt": {"input_tokens": 10},
        "prices": PRICES,
        "output_tokens": 20,
        "explicit": True,
    }
    return Reserve(**values | changes)


def settle(op: Reserve, output: int = 20, status: SettleStatus = "ok", **changes: Any) -> Settle:
    counts = {"input_tokens": op.prompt.get("input_tokens", 0), "output_tokens": output}
    return Settle(**{"charge_id": op.charge_id, "counts": counts, "status": status} | changes)


@asynccontextmanager
async def publisher(url: str, content: Catalogue | None = None) -> AsyncIterator[DatabasePublisher]:
    opened = open_publisher(url)
    await opened.start()
    try:
        if content is not None:
            await opened.publish(content)
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def ledger(url: str, owner: str = "gateway") -> AsyncIterator[Store]:
    opened = open_ledger(url, owner)
    await opened.start()
    try:
        yield opened
    finally:
        await opened.close()
