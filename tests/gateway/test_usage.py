"""GET /usage and POST /usage/completions, asked as a customer asks them."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.backend import Backend, Behaviour
from support.gateway import HELLO, KEY, Running, check_error, key, plan

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.gateway.usage_schema import read_usage

Start = Callable[..., Any]

OTHER = "sk-tw-" + "B" * 43 + "other1"


async def ask(running: Running, method: str, path: str, secret: str = KEY, **options: Any) -> tuple[int, Any, Any]:
    headers = {"authorization": f"Bearer {secret}", **options.pop("headers", {})}
    async with running.client.request(method, running.url + path, headers=headers, **options) as response:
        return response.status, response.headers, await response.json()


async def windows(running: Running, **body: Any) -> tuple[int, Any, Any]:
    start = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return await ask(running, "POST", "/v1/usage/completions", json={"start_time": start, **body})


async def test_the_month_of_an_account(start: Start) -> None:
    limits = Limits(
        requests_per_minute=100,
        concurrent_requests=8,
        credits_monthly_micro=1_000_000,
        trial_seconds=10**9,
        trial_requests=50,
        file_size_bytes=1024,
        quotas=(
            Quota(name="calls", meter="Requests", limit=10),
            Quota(name="small", meter="Tokens", limit=100_000, period="Week", model_ids=("small",)),
        ),
    )
    narrower = Limits(requests_per_minute=30, quotas=(Quota(name="mine", meter="OutputTokens", limit=1000),))
    running = await start(plans=[plan(limits=limits, tier="Free")], keys=[key(limits=narrower, created=1_700_000_000)])
    status, _, answer = await running.post({"model": "small", "messages": HELLO, "max_tokens": 20})
    assert status == 200
    usage = answer["usage"]
    status, headers, body = await ask(running, "GET", "/api/v1/usage")
    assert status == 200
    assert headers["x-request-id"]
    (row,) = await running.usage_rows(1)
    used = row["charged_micro"]
    assert body.pop("trial_ends_at") == datetime.fromtimestamp(2_700_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    quotas = {quota.pop("name"): quota for quota in body.pop("quotas")}
    assert body == {
        "status": "active",
        "is_free": True,
        "is_trial": True,
        "period": datetime.now(UTC).strftime("%Y-%m"),
        "product": "ml/pro",
        "product_label": "Pro",
        "usage_label": "API Requests",
        "total_requests": 1,
        "total_ok": 1,
        "total_errors": 0,
        "total_tokens_in": usage["prompt_tokens"],
        "total_tokens_out": usage["completion_tokens"],
        "rate_limit_per_minute": 30,
        "max_concurrent_requests": 8,
        "monthly_usage_cap": 10,
        "usage_remaining": 9,
        "trial_usage_limit": "50",
        "trial_usage_remaining": "49",
        "max_file_size": 1024,
        "addons": [],
        "enabled_features": ["logprobs", "structured_output"],
        "enabled_endpoints": ["chat_completions"],
        "credits_used": used / 1_000_000,
        "credits_remaining": (1_000_000 - used) / 1_000_000,
    }
    assert quotas["mine"]["of"] == "key"
    assert quotas["mine"]["used"] == usage["completion_tokens"]
    assert (quotas["small"]["period"], quotas["small"]["models"]) == ("week", ["small"])
    assert quotas["small"]["remaining"] == 100_000 - usage["total_tokens"]


async def test_a_trial_that_is_over_is_inactive(start: Start) -> None:
    running = await start(limits=Limits(trial_seconds=3600), keys=[key(created=1_700_000_000)])
    _, _, body = await ask(running, "GET", "/v1/usage")
    assert (body["status"], body["trial_ends_at"]) == ("inactive", "2023-11-14T23:13:20Z")


async def test_without_limits_they_are_null(running: Running) -> None:
    _, _, body = await ask(running, "GET", "/v1/usage")
    names = ("rate_limit_per_minute", "monthly_usage_cap", "usage_remaining", "credits_remaining", "max_file_size")
    assert {name: body[name] for name in names} == dict.fromkeys(names)
    assert (body["status"], body["total_requests"], body["credits_used"], body["quotas"]) == ("active", 0, 0, [])


async def test_windows_by_model_and_status(running: Running, backend: Backend) -> None:
    for _ in range(2):
        await running.post({"model": "small", "messages": HELLO})
    backend.queue.append(Behaviour(status=400))
    await running.post({"model": "small", "messages": HELLO})
    rows = await running.usage_rows(3)
    for size in ("MINUTE", "HOUR", "DAY"):
        status, _, body = await windows(
            running, window_size=size, window_timezone="Asia/Kolkata", group_by=["model", "status"]
        )
        assert status == 200
        assert body["window_size"] == size
        ok = [row for row in body["data"] if row["groupBy"] == {"model": "small", "status": "ok"}]
        failed = [row for row in body["data"] if row["groupBy"] == {"model": "small", "status": "error"}]
        assert sum(row["requests"] for row in ok) == 2
        assert sum(row["requests"] for row in failed) == 1
        assert sum(round(row["credits"] * 1_000_000) for row in body["data"]) == sum(r["charged_micro"] for r in rows)
        assert {row["user_id"] for row in body["data"]} == {"ml/me"}
    _, _, body = await windows(running, filter_group_by={"status": ["cancelled"]})
    assert body["data"] == []


@pytest.mark.parametrize("size", ["MINUTE", "HOUR", "DAY"])
def test_a_window_that_has_just_begun_is_in_a_report_up_to_now(size: str) -> None:
    now = datetime(2026, 11, 27, 0, 0, 0, 600_000, tzinfo=UTC)
    asked = read_usage({"start_time": "2026-11-26T23:00:00Z", "window_size": size}, False, "ml/me", now)
    assert asked.query.runs[-1].end_ms > now.timestamp() * 1000


async def test_another_account_sees_nothing_of_it(start: Start) -> None:
    other = key(
        OTHER, key_id="ml/other", uid="uid-other", account="ml/other", sha256=hashlib.sha256(OTHER.encode()).hexdigest()
    )
    running = await start(keys=[key(), other])
    await running.post({"model": "small", "messages": HELLO})
    await running.usage_rows(1)
    _, _, body = await ask(running, "GET", "/v1/usage", OTHER)
    assert body["total_requests"] == 0
    query = {"start_time": "2026-01-01T00:00:00Z", "filter_group_by": {"key": ["ml/me"]}}
    _, _, body = await ask(running, "POST", "/v1/usage/completions", OTHER, json=query)
    assert body["data"] == []
    check_error(await ask(running, "GET", "/v1/usage", "sk-tw-nobody"), "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "start_time"),
        ({"start_time": "yesterday"}, "invalid_value", "start_time"),
        ({"start_time": "2026-11-25T08:00:00"}, "invalid_value", "start_time"),
        ({"start_time": "2026-02-30T08:00:00Z"}, "invalid_value", "start_time"),
        ({"start_time": "0001-01-01T00:00:00Z"}, "invalid_value", "start_time"),
        ({"start_time": "2026-11-25T08:00:00+99:99"}, "invalid_value", "start_time"),
        ({"start_time": 1_700_000_000}, "invalid_value", "start_time"),
        ({"end_time": "2020-01-01T00:00:00Z"}, "invalid_value", "end_time"),
        ({"start_time": "2001-01-01T00:00:00Z"}, "invalid_value", "start_time"),
        ({"start_time": "2026-01-01T00:00:00Z", "window_size": "MINUTE"}, "invalid_value", "start_time"),
        ({"window_size": "YEAR"}, "invalid_value", "window_size"),
        ({"window_timezone": "Mars/Olympus"}, "invalid_value", "window_timezone"),
        ({"window_timezone": "../../etc/passwd"}, "invalid_value", "window_timezone"),
        ({"group_by": ["plan"]}, "invalid_value", "group_by[0]"),
        ({"group_by": ["model", "model"]}, "invalid_value", "group_by"),
        ({"group_by": "model"}, "invalid_value", "group_by"),
        ({"filter_group_by": {"plan": ["pro"]}}, "unsupported_parameter", "filter_group_by.plan"),
        ({"filter_group_by": {"model": []}}, "invalid_value", "filter_group_by.model"),
        ({"filter_group_by": {"model": "small"}}, "invalid_value", "filter_group_by.model"),
        ({"colour": "red"}, "unsupported_parameter", "colour"),
    ],
)
async def test_a_bad_question_is_told_so(running: Running, body: dict[str, Any], code: str, param: str) -> None:
    if param == "start_time" or "start_time" in body:
        answer = await ask(running, "POST", "/v1/usage/completions", json=body)
    else:
        answer = await windows(running, **body)
    check_error(answer, code, param)


async def test_a_parameter_that_is_to_be_ignored_is_named(running: Running) -> None:
    start = {"start_time": "2026-11-25T08:00:00Z", "colour": "red"}
    headers = {"x-unsupported-parameters": "ignore"}
    status, answered, _ = await ask(running, "POST", "/v1/usage/completions", json=start, headers=headers)
    assert (status, answered["x-ignored-parameters"]) == (200, "colour")
