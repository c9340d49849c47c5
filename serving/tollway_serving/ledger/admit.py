"""The one decision on a request: may it run, and what does it take? Pure; called by `transaction` for every store.

All limits are judged together against the state that the transaction has locked, and nothing is taken unless all of
it is: settled + held <= limit afterwards for credits, quotas, concurrency and the trial, whatever the estimate was.
Requests and tokens a minute are token buckets: N at once, refilled at N a minute.
"""

from collections.abc import Mapping

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.contract.units import METERS, Unit, affordable_units, commons, price_in_commons, rounded_up
from tollway_serving.ledger import messages
from tollway_serving.ledger.ops import RateState, Refused, Reserve
from tollway_serving.ledger.periods import period_bounds, period_key
from tollway_serving.ledger.state import MINUTE_MS, Hold, State, level, month_used, take
from tollway_serving.ledger.value import value

MAX_DEADLINE_MS = 7 * 86_400_000

MOST_MICRO = 10**17
"""What an account without a limit may use in a month, a hundred milliard credits: sums then fit into a database's 64
bits, and no call is let in that could not be charged."""


@value
class Scope:
    """One subject with its limits: the account by its plan, or the key by its own narrowing."""

    state: State
    limits: Limits
    first_key: int | None = None  # ms; the account's trial starts here
    is_key: bool = False


def admit(scopes: tuple[Scope, ...], op: Reserve, now: int, key_subject: str | None) -> Hold | Refused:
    """`scopes` starts with the account's. Answers what to `book`, or why not; changes nothing.

    An explicit output is held whole or refused. One that is not explicit shrinks to what credits and quotas still
    allow, to `output_minimum` at the least; for tokens a minute it shrinks to the bucket's size only, because waiting
    gives a whole answer there.
    """
    fixed: dict[Unit, int] = {unit: count for unit, count in op.prompt.items() if count and unit != "output_tokens"}
    fixed["requests"] = 1
    most = op.output_tokens
    least = most if op.explicit or op.output_minimum > most else op.output_minimum
    for scope in scopes:
        refused = _trial(scope, now) or _concurrency(scope) or _requests(scope, op, now)
        if refused is not None:
            return refused
    for scope in scopes:
        for quota in scope.limits.quotas:
            if quota.model_ids is not None and op.model_id not in quota.model_ids:
                continue
            room = _quota(scope, quota, fixed, least, now)
            if isinstance(room, Refused):
                return room
            if room < most:
                most = room
    rest, price = commons(fixed, op.prices), price_in_commons("output_tokens", op.prices)
    for scope in scopes:
        affordable = _credits(scope, rest, price, least, now)
        if isinstance(affordable, Refused):
            return affordable
        if affordable < most:
            most = affordable
    fixed_tokens = fixed.get("input_tokens", 0)
    for scope in scopes:
        per_minute = scope.limits.tokens_per_minute
        if per_minute is not None and not op.explicit and per_minute - fixed_tokens < most:
            most = max(least, per_minute - fixed_tokens)
    for scope in scopes:
        refused = _tokens(scope, fixed_tokens + most, now)
        if refused is not None:
            return refused
    counts = {**fixed, "output_tokens": most} if most else fixed
    micro = rounded_up(rest + most * price)
    used, held = month_used(scopes[0].state, now)
    if used + held + micro > MOST_MICRO:
        text = messages.credits_used_up(used + held, MOST_MICRO, micro)
        return Refused("insufficient_quota", text, _next_month(now), "credits")
    monthly = scopes[0].limits.credits_monthly_micro
    return Hold(
        charge_id=op.charge_id,
        request_id=op.request_id,
        owner=op.owner,
        account=op.account,
        key_id=op.key_id,
        key_subject=key_subject,
        plan=op.plan,
        endpoint=op.endpoint,
        model_id=op.model_id,
        revision=op.catalogue_revision,
        created=now,
        deadline=now + min(max(0, op.deadline_ms), MAX_DEADLINE_MS),
        counts=counts,
        prices=dict(op.prices),
        micro=micro,
        topup=0 if monthly is None else max(0, micro - max(0, monthly - used - held)),
        monthly_limit=monthly,
        covered_output=min(op.covered, most),
        repeat=op.repeat,
    )


def book(scopes: tuple[Scope, ...], hold: Hold, op: Reserve, now: int) -> None:
    """Takes an admitted hold in every scope. A fallback's counts no second request a minute."""
    for scope in scopes:
        take(
            scope.state,
            hold,
            now,
            is_key=scope.is_key,
            requests_per_minute=None if op.replaces else scope.limits.requests_per_minute,
            tokens_per_minute=scope.limits.tokens_per_minute,
        )


def rates(scopes: tuple[Scope, ...], now: int) -> RateState:
    """What the tightest scope leaves, for the x-ratelimit-* headers; a reset is the time until a bucket is full."""
    requests: _Rate = _NO_RATE
    tokens: _Rate = _NO_RATE
    for scope in scopes:
        requests = _tighter(requests, scope.limits.requests_per_minute, scope.state.requests, now)
        tokens = _tighter(tokens, scope.limits.tokens_per_minute, scope.state.tokens, now)
    return RateState(*requests, *tokens)


_Rate = tuple[int | None, int | None, int | None]  # limit, left, ms until the bucket is full
_NO_RATE: _Rate = (None, None, None)


def _tighter(known: _Rate, limit: int | None, bucket: list[int] | None, now: int) -> _Rate:
    if limit is None:
        return known
    left = level(bucket, limit, now)
    whole = left // MINUTE_MS if left > 0 else 0
    if known[1] is not None and known[1] <= whole:
        return known
    return limit, whole, -(-(limit * MINUTE_MS - left) // limit) if limit else MINUTE_MS


def credits_left(scopes: tuple[Scope, ...], now: int) -> int | None:
    """Micro-credits that nobody has used or holds, in the tightest scope; None: no limit."""
    least = None
    for scope in scopes:
        room = _credit_room(scope, now)
        if room is not None and (least is None or room < least):
            least = room
    return least


def _trial(scope: Scope, now: int) -> Refused | None:
    limits = scope.limits
    if limits.trial_seconds is None and limits.trial_requests is None:
        return None
    (used, held), begun = scope.state.trial, scope.first_key
    if limits.trial_seconds is not None and begun is not None and now >= begun + limits.trial_seconds * 1000:
        return Refused("insufficient_quota", messages.TRIAL_ENDED, _next_month(now), "trial")
    if limits.trial_requests is not None and used + held + 1 > limits.trial_requests:
        wait = _next_month(now) if used + 1 > limits.trial_requests else _pace(scope.state)
        text = messages.trial_requests(used + held, limits.trial_requests)
        return Refused("rate_limit_exceeded", text, wait, "trial")
    return None


def _concurrency(scope: Scope) -> Refused | None:
    limit = scope.limits.concurrent_requests
    if limit is None or scope.state.open + 1 <= limit:
        return None
    text = messages.concurrency(scope.state.open, limit)
    return Refused("rate_limit_exceeded", text, _pace(scope.state), "concurrent_requests")


def _requests(scope: Scope, op: Reserve, now: int) -> Refused | None:
    limit = scope.limits.requests_per_minute
    if limit is None or op.replaces is not None:
        return None
    left = level(scope.state.requests, limit, now)
    if left >= MINUTE_MS:
        return None
    text = messages.rate(limit - max(0, left) // MINUTE_MS, limit, "requests", 1)
    return Refused("rate_limit_exceeded", text, _refill(MINUTE_MS - left, limit), "requests_per_minute")


def _tokens(scope: Scope, need: int, now: int) -> Refused | None:
    limit = scope.limits.tokens_per_minute
    if limit is None:
        return None
    if need > limit:
        return Refused("rate_limit_exceeded", messages.too_large(need, limit), 60, "tokens_per_minute")
    left = level(scope.state.tokens, limit, now)
    if left >= need * MINUTE_MS:
        return None
    text = messages.rate(limit - max(0, left) // MINUTE_MS, limit, "tokens", need)
    return Refused("rate_limit_exceeded", text, _refill(need * MINUTE_MS - left, limit), "tokens_per_minute")


def _quota(scope: Scope, quota: Quota, fixed: Mapping[Unit, int], least: int, now: int) -> int | Refused:
    """How many output tokens the quota has room for beside the rest of the request, at least `least`."""
    units, size = METERS[quota.meter]
    settled, held = quota_used(scope.state, quota, now)
    need = 0
    for unit in units:
        need += fixed.get(unit, 0)
    counts_output = "output_tokens" in units
    room = quota.limit * size - settled - held - need
    if room >= (least if counts_output else 0):
        return room if counts_output else 2**62
    need += least if counts_output else 0
    if need == 0:
        return 2**62  # an exhausted quota is no reason to refuse what does not use it
    in_the_way = settled + need <= quota.limit * size
    wait = _pace(scope.state) if in_the_way else _seconds(period_bounds(quota.period, now)[1] - now)
    text = messages.quota(
        (settled + held) // size, quota.limit, quota.meter, quota.period, -(-need // size), held=in_the_way
    )
    return Refused("rate_limit_exceeded", text, wait, "quota")


def quota_used(state: State, quota: Quota, now: int) -> tuple[int, int]:
    """(settled, held) of a quota in its current period, in its meter's units times their size (units.METERS)."""
    by_model = state.counts.get(period_key(quota.period, now))
    if by_model is None:
        return 0, 0
    settled = held = 0
    for model in by_model if quota.model_ids is None else quota.model_ids:
        counted = by_model.get(model)
        if counted is not None:
            for unit in METERS[quota.meter][0]:
                pair = counted.get(unit)
                if pair is not None:
                    settled += pair[0]
                    held += pair[1]
    return settled, held


def _credits(scope: Scope, rest: int, price: int, least: int, now: int) -> int | Refused:
    """How many output tokens the credits pay for beside the rest of the request, at least `least`. `rest` and `price`
    (of one) are in the parts that units.commons counts."""
    room = _credit_room(scope, now)
    if room is None:
        return 2**62
    need = rounded_up(rest + least * price)
    if need <= room or need == 0:
        output = affordable_units(room, price, rest)
        return 2**62 if output is None else max(least, output)
    used, limit = month_used(scope.state, now)[0], scope.limits.credits_monthly_micro or 0
    granted, topup_used = (0, 0) if scope.is_key else scope.state.topup[:2]
    left = max(0, limit - used) + max(0, granted - topup_used)
    if need <= left:
        text = messages.credits_held(left, left - room, need)
        return Refused("credits_held", text, _pace(scope.state), "credits")
    text = messages.credits_used_up(used + topup_used, limit + granted, need)
    return Refused("insufficient_quota", text, _next_month(now), "credits")


def _credit_room(scope: Scope, now: int) -> int | None:
    if scope.limits.credits_monthly_micro is None:
        return None
    granted, used, held = (0, 0, 0) if scope.is_key else scope.state.topup
    return _month_room(scope, now) + max(0, granted - used - held)


def _month_room(scope: Scope, now: int) -> int:
    settled, held = month_used(scope.state, now)
    return max(0, (scope.limits.credits_monthly_micro or 0) - settled - held)


def _pace(state: State) -> int:
    """Seconds until one of the calls in flight has probably ended, from how long calls have lived so far."""
    return min(60, max(1, -(-state.pace // (1000 * max(1, state.open)))))


def _refill(missing: int, per_minute: int) -> int:
    return _seconds(-(-missing // per_minute)) if per_minute else 60


def _next_month(now: int) -> int:
    return _seconds(period_bounds("Month", now)[1] - now)


def _seconds(ms: int) -> int:
    return max(1, -(-ms // 1000))
