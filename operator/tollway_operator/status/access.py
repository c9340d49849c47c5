"""The conditions of Plans and ApiKeys. Called by `judge`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tollway_operator.builders.views import KeyView, PlanView
from tollway_operator.memo import Clock
from tollway_operator.resources.conditions import (
    KeyAccepted,
    KeyNearLimit,
    KeyReady,
    PlanReady,
    PlanResolvedRefs,
)
from tollway_operator.status.conditions import Condition, Judgement, Reach, reason, sentence, timestamp, write
from tollway_serving.contract.catalogue import Quota
from tollway_serving.contract.units import format_credits
from tollway_serving.ledger.port import AccountUsage


def judge_plan(view: PlanView, users: tuple[int, int] | None, reach: Reach, *, clock: Clock) -> Judgement:
    """`users`: how many ApiKeys are on it, and how many accounts these have; None: what was written last stays."""
    before = view.parsed.raw.status
    keys, accounts = users or (before.get("keys"), before.get("accounts"))
    if view.unresolved:
        first = reason(PlanResolvedRefs, view.unresolved[0].reason)
        resolved = Condition("ResolvedRefs", first, sentence(problem.message for problem in view.unresolved))
    else:
        resolved = Condition("ResolvedRefs", PlanResolvedRefs.RESOLVED)
    if view.refused:
        ready = Condition("Ready", PlanReady.UNSUPPORTED_FIELD, view.refused.message)
    elif not reach.published:
        ready = Condition("Ready", PlanReady.LEDGER_UNREACHABLE, reach.ledger_error)
    else:
        ready = Condition("Ready", PlanReady.PUBLISHED)
    fields = {
        "models": len(view.entry.model_ids) if view.entry else 0,
        "keys": keys,
        "accounts": accounts,
    }
    warn = (("ResolvedRefs", "False"), ("Ready", "False"))
    return write(view.parsed.raw, (resolved, ready), fields, clock, warn=warn)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a plan, what its accounts can come near to."""

    quotas: tuple[Quota, ...]
    low_watermark_micro: int | None


def bounds(view: PlanView) -> Bounds | None:
    entry = view.entry
    return Bounds(entry.limits.quotas, entry.low_watermark_micro) if entry is not None else None


def judge_key(
    view: KeyView,
    plan: Bounds | None,
    usage: AccountUsage | None,
    error: str | None,
    not_ours: bool,
    reach: Reach,
    *,
    clock: Clock,
) -> Judgement:
    """`error`: why its Secret couldn't be written."""
    raw = view.parsed.raw
    if view.secret_missing and not error:  # the next pass sees the Secret: no status for a moment's sake
        return Judgement(raw, raw.status, changed=False, settled=False)
    resource = view.parsed.resource
    accepted = _accepted(view, not_ours, error or "")
    ready = _ready(view, accepted, reach, error or "")
    conditions = (accepted, ready, _near_limit(usage, plan))
    fields: dict[str, Any] = {
        "plan": resource.plan if resource else None,
        "account": resource.account if resource else None,
        "prefix": view.prefix or None,
        "lastFour": view.last_four or None,
        "rotatedAt": timestamp(view.rotated_at) if view.rotated_at is not None else None,
        "usage": _usage(usage) if usage else raw.status.get("usage"),
    }
    warn = (("Accepted", "False"), ("NearLimit", "True"))
    return write(raw, conditions, fields, clock, warn=warn)


def _accepted(view: KeyView, not_ours: bool, error: str) -> Condition:
    if view.refused:
        return Condition("Accepted", reason(KeyAccepted, view.refused.reason), view.refused.message)
    if not_ours:
        return Condition("Accepted", KeyAccepted.SECRET_NOT_OURS, error)
    return Condition("Accepted", KeyAccepted.ACCEPTED)


def _ready(view: KeyView, accepted: Condition, reach: Reach, error: str) -> Condition:
    resource = view.parsed.resource
    if accepted.reason.status == "False" and not view.entries:
        return Condition("Ready", KeyReady.NOT_ACCEPTED, accepted.message)
    if not reach.published:
        return Condition("Ready", KeyReady.LEDGER_UNREACHABLE, reach.ledger_error)
    if any(entry.state == "Suspended" for entry in view.entries) or (resource and resource.spec.state == "Suspended"):
        return Condition("Ready", KeyReady.SUSPENDED)
    if view.expired:
        ended = resource.spec.expires_at if resource else ""
        return Condition("Ready", KeyReady.EXPIRED, f"it expired at {ended}")
    if accepted.reason.status == "False":
        return Condition("Ready", KeyReady.ACTIVE, "the last accepted version counts")
    if view.current is None:
        return Condition("Ready", KeyReady.NOT_ACCEPTED, error or "its Secret is being made")
    return Condition("Ready", KeyReady.ACTIVE)


def _near_limit(usage: AccountUsage | None, plan: Bounds | None) -> Condition:
    if usage is None or plan is None:
        return Condition("NearLimit", KeyNearLimit.WITHIN_LIMITS)
    left = usage.credits_left_micro
    limits = {quota.name: quota.limit for quota in plan.quotas}
    used_up = [name for name, limit in limits.items() if usage.quotas_used.get(name, 0) >= limit]
    if left is not None and left <= 0:
        return Condition("NearLimit", KeyNearLimit.USED_UP, "the account's credits are used up")
    if used_up:
        return Condition("NearLimit", KeyNearLimit.USED_UP, f"used up: {', '.join(used_up)}")
    if left is not None and plan.low_watermark_micro is not None and left < plan.low_watermark_micro:
        return Condition("NearLimit", KeyNearLimit.CREDITS_LOW, f"{format_credits(left)} credits are left")
    low = [name for name, limit in limits.items() if 10 * (limit - usage.quotas_used.get(name, 0)) < limit]
    if low:
        return Condition("NearLimit", KeyNearLimit.QUOTA_LOW, f"less than a tenth is left: {', '.join(low)}")
    return Condition("NearLimit", KeyNearLimit.WITHIN_LIMITS)


def _usage(usage: AccountUsage) -> Mapping[str, Any]:
    written = {"periodEnd": timestamp(usage.period_end), "creditsUsed": format_credits(usage.credits_used_micro)}
    if usage.credits_left_micro is not None:
        written["creditsLeft"] = format_credits(usage.credits_left_micro)
    return written
