"""GET /usage and POST /usage/completions: what the caller's account has used and may still use. Free."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from tollway_serving.contract.catalogue import Limits
from tollway_serving.contract.units import format_credits
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Access
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.parameters import ignored_header
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.usage_schema import USAGE, read_usage
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.questions import NotKeptError, QuotaUse, Standing, TooManyRowsError, Who
from tollway_serving.ledger.state import key_subject

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


async def usage(gateway: "Gateway", call: Call) -> None:
    access = gateway.authenticate(call, None)
    key = access.key
    subject = key_subject(key.uid, key.key_id, key.limits)
    who = Who(key.account, access.plan.limits, subject, key.limits if subject else Limits())
    try:
        standing = await gateway.ledger.standing(who)
    except LedgerUnavailable:
        raise ledger_unavailable() from None
    models = [model for name in sorted(access.model_ids) if (model := gateway.catalogue.model(access, name))]
    endpoints = {_snake(e) for model in models for e in model.entry.endpoints if access.allows(e)}
    features = {_snake(capability) for model in models for capability in model.entry.capabilities}
    body = usage_object(access, standing) | {
        "enabled_features": sorted(features),
        "enabled_endpoints": sorted(endpoints),
    }
    await call.respond(200, orjson.dumps(body))


def usage_object(access: Access, standing: Standing) -> dict[str, Any]:
    """kai's object (contract/sources), with credits and quotas beside it. Limits are the tighter ones of plan and key;
    null: no limit."""
    plan, limits = access.plan, access.plan.limits
    trial_ends = None
    if limits.trial_seconds is not None and standing.first_key_ms is not None:
        trial_ends = standing.first_key_ms + limits.trial_seconds * 1000
    trial_left = None
    if limits.trial_requests is not None:
        trial_left = max(0, limits.trial_requests - standing.trial_settled - standing.trial_held)
    over = (trial_ends is not None and trial_ends <= standing.now_ms) or (
        limits.trial_requests is not None and standing.trial_settled >= limits.trial_requests
    )
    caps = [q for q in standing.quotas if (q.quota.meter, q.quota.period, q.quota.model_ids) == _CAP]
    cap = min(caps, key=_left, default=None)
    left = standing.credits_left_micro
    return {
        "status": "inactive" if over else "active",
        "is_free": plan.tier == "Free",
        "is_trial": limits.trial_seconds is not None or limits.trial_requests is not None,
        "trial_ends_at": None if trial_ends is None else timestamp(trial_ends),
        "period": standing.month,
        "product": plan.name,
        "product_label": plan.display_name,
        "usage_label": "API Requests",
        "total_requests": standing.requests,
        "total_ok": standing.ok,
        "total_errors": standing.requests - standing.ok,
        "total_tokens_in": standing.input_tokens,
        "total_tokens_out": standing.output_tokens,
        "rate_limit_per_minute": _tighter(limits.requests_per_minute, access.key.limits.requests_per_minute),
        "max_concurrent_requests": _tighter(limits.concurrent_requests, access.key.limits.concurrent_requests),
        "monthly_usage_cap": None if cap is None else cap.quota.limit,
        "usage_remaining": None if cap is None else _left(cap),
        "trial_usage_limit": None if limits.trial_requests is None else str(limits.trial_requests),
        "trial_usage_remaining": None if trial_left is None else str(trial_left),
        "max_file_size": _tighter(limits.file_size_bytes, access.key.limits.file_size_bytes),
        "addons": [],
        "credits_used": credits_number(standing.credits_used_micro),
        "credits_remaining": None if left is None else credits_number(left),
        "quotas": [_quota_row(each) for each in standing.quotas],
    }


_CAP = ("Requests", "Month", None)


async def usage_windows(gateway: "Gateway", call: Call) -> None:
    access = gateway.authenticate(call, None)
    body = await call.json(gateway.settings.max_body_bytes, gateway.settings.body_timeout_s)
    ignore = gateway.ignores_unsupported(call, access)
    request = read_usage(body, ignore, access.key.account, datetime.now(UTC))
    try:
        rows = await gateway.ledger.window_usage(request.query)
    except LedgerUnavailable:
        raise ledger_unavailable() from None
    except TooManyRowsError:
        text = "That has too many groups in its windows. Ask for a shorter time, larger windows or fewer groups."
        raise ApiError("invalid_value", text, param="group_by") from None
    except NotKeptError as error:
        text = f"Single calls are kept from {timestamp(error.from_ms)} on. Ask for hours or days before that."
        raise ApiError("invalid_value", text, param="start_time") from None
    names = request.query.group_by
    data = [
        {
            "groupBy": dict(zip(names, row.group, strict=True)),
            "user_id": access.key.account,
            "input_token": row.input_tokens,
            "output_token": row.output_tokens,
            "requests": row.requests,
            "credits": credits_number(row.charged_micro),
            "windowStart": timestamp(row.start_ms),
            "windowEnd": timestamp(row.end_ms),
        }
        for row in rows
    ]
    answer = {"data": data, "start_time": request.start, "end_time": request.end, "window_size": request.size}
    headers = [(b"x-ignored-parameters", ignored_header(request.unknown))] if request.unknown else []
    await call.respond(200, orjson.dumps(answer), headers)


def timestamp(ms: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ms // 1000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def credits_number(micro: int) -> orjson.Fragment:
    """A decimal number in JSON, exact: never a float on its way."""
    return orjson.Fragment(format_credits(micro))


def _quota_row(each: QuotaUse) -> dict[str, Any]:
    quota = each.quota
    return {
        "name": quota.name,
        "meter": _snake(quota.meter),
        "period": quota.period.lower(),
        "models": None if quota.model_ids is None else list(quota.model_ids),
        "of": "key" if each.of_key else "account",
        "limit": quota.limit,
        "used": each.settled,
        "held": each.held,
        "remaining": _left(each),
        "resets_at": timestamp(each.ends_ms),
    }


def _left(each: QuotaUse) -> int:
    return max(0, each.quota.limit - each.settled - each.held)


def _tighter(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _snake(name: str) -> str:
    return _WORD.sub("_", name).lower()


ROUTES = (
    Route("GET", "/usage", usage, ()),
    Route("POST", "/usage/completions", usage_windows, (), request=USAGE),
)
