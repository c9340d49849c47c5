"""What a plan and a key give, through the whole gateway, and what happens when they change while they are used."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from support.backend import Backend
from support.gateway import HELLO, KEY, Running, check_error, key, model, plan, until

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.ledger import schema, sqlite
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.periods import period_bounds
from tollway_serving.ledger.state import State, decode
from tollway_serving.ledger.verify import verify

Start = Callable[..., Any]

ASK: dict[str, Any] = {"messages": HELLO, "max_tokens": 5}
COST = 7 + 2 * 5
EXACT: dict[str, Any] = {"token_bound": {"tenth_bytes_per_token": 10_000, "per_message": 0, "fixed": 6}}
OTHER = "sk-tw-" + "E" * 49


def as_(secret: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {secret}"}}


async def statuses(running: Running, times: int, secret: str = KEY) -> list[int]:
    return [(await running.post(ASK, **as_(secret)))[0] for _ in range(times)]


async def state_of(running: Running, name: str = "account:ml/me") -> State:
    database = Database(running.database)
    wanted = sa.select(schema.subjects.c.state).where(schema.subjects.c.id == name)
    try:
        return decode(await database.read(lambda connection: connection.execute(wanted).scalar_one()))
    finally:
        await database.close()


async def test_a_cap_on_successful_requests_counts_no_failed_ones(start: Start, backend: Backend) -> None:
    running = await start(limits=Limits(quotas=(Quota(name="calls", meter="Requests", limit=2),)))
    backend.then(status=500)
    assert (await running.post(ASK))[0] == 503
    assert await statuses(running, 3) == [200, 200, 429]
    error = check_error(await running.post(ASK), "rate_limit_exceeded")
    assert "2 of your 2 requests for this month" in error["message"]


@pytest.mark.parametrize("period", ["Day", "Week", "Month"])
async def test_a_quota_of_a_group_of_models(start: Start, backend: Backend, period: Any) -> None:
    limits = Limits(quotas=(Quota(name="large", meter="OutputTokens", limit=7, period=period, model_ids=("large",)),))
    running = await start(
        models=[model(backend.url, **EXACT), model(backend.url, "large", **EXACT)],
        plans=[plan(limits=limits, model_ids=("small", "large"))],
    )
    large = {**ASK, "model": "large"}
    assert (await running.post(large))[0] == 200
    _, headers, _ = answer = await running.post(large)
    check_error(answer, "rate_limit_exceeded")
    now = time.time_ns() // 1_000_000
    assert abs(int(headers["retry-after"]) - (period_bounds(period, now)[1] - now) // 1000) <= 2
    assert (await running.post(ASK))[0] == 200
    short = await running.post({"messages": HELLO, "model": "large"})
    assert (short[0], short[2]["usage"]["completion_tokens"]) == (200, 2)


async def test_a_trial_ends_by_its_requests_and_by_its_days(start: Start, backend: Backend) -> None:
    running = await start(limits=Limits(trial_requests=1))
    backend.then(status=500)
    assert [(await running.post(ASK))[0] for _ in range(3)] == [503, 200, 429]
    assert "1 of your 1 trial requests" in check_error(await running.post(ASK), "rate_limit_exceeded")["message"]
    await running.change(
        plans=(plan(limits=Limits(trial_seconds=86_400)),), keys=(key(created=int(time.time()) - 86_395),)
    )
    assert (await running.post(ASK))[0] == 200
    # A key that is made anew begins no second trial: it began with the account's first key.
    await running.change(keys=(key(created=int(time.time()) - 86_401), key(OTHER, key_id="ml/new", uid="uid-new")))
    for secret in (KEY, OTHER):
        check_error(await running.post(ASK, **as_(secret)), "insufficient_quota")


async def test_a_key_narrows_its_plan(start: Start, backend: Backend) -> None:
    """Models, routes and counts: what the key has is asked beside what the plan has, and never gives more."""
    running = await start(
        models=[model(backend.url, aliases=("tiny",)), model(backend.url, "large"), model(backend.url, "other")],
        plans=[plan(model_ids=("small", "large"), limits=Limits(requests_per_minute=3))],
        keys=[
            key(model_ids=("small", "other"), limits=Limits(requests_per_minute=2)),
            key(OTHER, key_id="ml/wide", uid="uid-wide", limits=Limits(requests_per_minute=1000)),
            key("sk-tw-" + "F" * 49, key_id="ml/off", uid="uid-off", endpoints=("Embeddings",)),
        ],
    )
    for name in ("large", "other"):
        check_error(await running.post({**ASK, "model": name}), "model_not_found")
    async with running.client.get(f"{running.url}/v1/models", **as_(KEY)) as answer:
        assert [each["id"] for each in (await answer.json())["data"]] == ["small"]
    check_error(await running.post(ASK, **as_("sk-tw-" + "F" * 49)), "endpoint_not_enabled")
    assert (await running.post({**ASK, "model": "tiny"}))[0] == 200
    assert await statuses(running, 2) == [200, 429], "the key's own two a minute"
    assert await statuses(running, 2, OTHER) == [200, 429], "the third of the account's three"


async def test_a_default_model_for_each_endpoint(start: Start, backend: Backend) -> None:
    both: Any = {"endpoints": ("ChatCompletions", "Completions")}
    running = await start(
        models=[model(backend.url, **both), model(backend.url, "large", **both)],
        plans=[
            plan(model_ids=("small", "large"), default_models={"ChatCompletions": "small", "Completions": "large"}),
        ],
        keys=[key(), key(OTHER, key_id="ml/narrow", uid="uid-narrow", model_ids=("large",))],
    )
    assert (await running.post(ASK))[1]["x-model-used"] == "small"
    url = f"{running.url}/v1/completions"
    async with running.client.post(url, json={"prompt": "a"}, **as_(KEY)) as answer:
        assert answer.headers["x-model-used"] == "large"
    check_error(await running.post(ASK, **as_(OTHER)), "model_not_found")


async def test_a_free_plan_says_so_and_has_limits_like_any_other(start: Start, backend: Backend) -> None:
    running = await start(
        models=[model(backend.url, prices={})],
        plans=[plan(tier="Free", limits=Limits(credits_monthly_micro=0, requests_per_minute=1))],
    )
    status, headers, _ = await running.post(ASK)
    assert (status, headers["x-credits-used"]) == (200, "0")
    async with running.client.get(f"{running.url}/v1/usage", **as_(KEY)) as answer:
        assert (await answer.json())["is_free"] is True
    check_error(await running.post(ASK), "rate_limit_exceeded")


async def test_another_plan_in_mid_month_starts_no_count_again(start: Start, backend: Backend) -> None:
    """What was used stays used, whichever way the plan changes; what is in flight ends as it began."""
    small, large = (plan(name=f"ml/{name}", limits=Limits(credits_monthly_micro=COST * calls))
                    for name, calls in (("small", 2), ("large", 4)))  # fmt: skip
    running = await start(models=[model(backend.url, **EXACT)], plans=[small, large], keys=[key(plan="ml/small")])
    assert await statuses(running, 3) == [200, 200, 429]
    await running.change(keys=(key(plan="ml/large"),))
    gate = asyncio.Event()
    backend.then(gate=gate)
    backend.arrived.clear()
    stream = asyncio.create_task(running.stream(ASK))
    await backend.arrived.wait()
    await running.change(keys=(key(plan="ml/small"),))
    check_error(await running.post(ASK), "insufficient_quota")
    gate.set()
    assert (await stream)[1].endswith(b"data: [DONE]\n\n")
    async with running.client.get(f"{running.url}/v1/usage", **as_(KEY)) as answer:
        body = await answer.json()
    assert (body["credits_used"], body["credits_remaining"]) == (3 * COST / 1e6, 0)
    await running.change(keys=(key(plan="ml/large"),))
    assert await statuses(running, 2) == [200, 429]
    assert [row["plan"] for row in await running.usage_rows(4)] == ["ml/small", "ml/small", "ml/large", "ml/large"]


async def test_a_rotated_key_is_the_same_customer_until_its_overlap_ends(start: Start) -> None:
    narrow: dict[str, Any] = {"limits": Limits(quotas=(Quota(name="calls", meter="Requests", limit=3),))}
    running = await start(keys=[key(**narrow)])
    assert await statuses(running, 1) == [200]
    ends = int(time.time()) + 2
    old = key(**narrow, expires_at=ends, replaced_until=ends)
    await running.change(keys=(old, key(OTHER, **narrow)))
    assert (await statuses(running, 1), await statuses(running, 1, OTHER)) == ([200], [200])
    assert (await statuses(running, 1), await statuses(running, 1, OTHER)) == ([429], [429]), "one count for both"
    await until(lambda: time.time() >= ends)
    check_error(await running.post(ASK), "expired_api_key")
    check_error(await running.post(ASK, **as_(OTHER)), "rate_limit_exceeded")
    assert {row["key_id"] for row in await running.usage_rows(3)} == {"ml/me"}


async def test_a_deleted_and_recreated_key_begins_its_own_counts_but_not_its_accounts(start: Start) -> None:
    once: dict[str, Any] = {"limits": Limits(quotas=(Quota(name="calls", meter="Requests", limit=1),))}
    running = await start(limits=Limits(quotas=(Quota(name="all", meter="Requests", limit=2),)), keys=[key(**once)])
    assert await statuses(running, 2) == [200, 429]
    await running.change(keys=())
    check_error(await running.post(ASK), "invalid_api_key")
    await running.change(keys=(key(OTHER, uid="uid-again", **once),))
    check_error(await running.post(ASK), "invalid_api_key")
    assert await statuses(running, 2, OTHER) == [200, 429], "the key's own one"
    await running.change(keys=(key(OTHER, uid="uid-third", **once),))
    assert await statuses(running, 1, OTHER) == [429], "the account's two"


async def test_a_months_end_during_a_long_stream(
    start: Start, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the month in which it was let in; the new one begins with all its credits."""
    november = period_bounds("Month", 1_795_000_000_000)[1] - 500
    clock = SimpleNamespace(time_ns=lambda: november * 1_000_000)
    monkeypatch.setattr(sqlite, "time", clock)
    running = await start(models=[model(backend.url, **EXACT)], limits=Limits(credits_monthly_micro=COST))
    gate = asyncio.Event()
    backend.then(gate=gate)
    stream = asyncio.create_task(running.stream(ASK))
    await backend.arrived.wait()
    check_error(await running.post(ASK), "credits_held")
    clock.time_ns = lambda: (november + 1_000) * 1_000_000
    assert (await running.post(ASK))[0] == 200
    check_error(await running.post(ASK), "insufficient_quota")
    gate.set()
    await stream
    state = await state_of(running)
    assert state.credits == {"2026-11": [COST, 0], "2026-12": [COST, 0]}
    rows = await running.usage_rows(2)
    assert {row["created_ms"]: row["charged_micro"] for row in rows} == {november: COST, november + 1_000: COST}
    assert (await verify(running.database)).problems == []
