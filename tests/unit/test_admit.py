"""The decision on single requests, with a clock in the hand; tests/unit/test_admit_machine.py has the properties."""

from dataclasses import replace
from typing import Any

import pytest
from support.ledger import reserve

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.contract.units import METERS, Meter
from tollway_serving.ledger.admit import Scope, admit, book, credits_left, rates
from tollway_serving.ledger.ops import RateState, Refused, Reserve, Settle
from tollway_serving.ledger.periods import key_bounds, period_bounds, period_key, period_keys
from tollway_serving.ledger.settle import last_known, settle
from tollway_serving.ledger.state import Hold, State, decode, encode, give_back, hold_from_row, hold_to_json

OCTOBER_31 = 1_793_404_800_000  # 2026-10-31T00:00Z, a Saturday
HOUR, DAY = 3_600_000, 86_400_000
NOON = OCTOBER_31 + 12 * HOUR


class Account:
    """One account, and perhaps its key, through reserves and settlements."""

    def __init__(self, limits: Limits, key: Limits | None = None, first_key: int | None = None) -> None:
        self.scopes: tuple[Scope, ...] = (Scope(State(), limits, first_key),)
        if key is not None:
            self.scopes = (*self.scopes, Scope(State(), key, is_key=True))

    @property
    def state(self) -> State:
        return self.scopes[0].state

    def take(self, now: int = NOON, **changes: Any) -> Hold | Refused:
        op = reserve(**changes)
        decision = admit(self.scopes, op, now, "key:uid" if len(self.scopes) > 1 else None)
        if isinstance(decision, Hold):
            book(self.scopes, decision, op, now)
        return decision

    def held(self, now: int = NOON, **changes: Any) -> Hold:
        hold = self.take(now, **changes)
        assert isinstance(hold, Hold), hold
        return hold

    def refused(self, now: int = NOON, **changes: Any) -> Refused:
        refused = self.take(now, **changes)
        assert isinstance(refused, Refused)
        return refused

    def close(self, hold: Hold, output: int = 20, status: Any = "ok", now: int = NOON, prompt: int = 10) -> int:
        op = Settle(hold.charge_id, {"input_tokens": prompt, "output_tokens": output}, status)
        charge = settle(self.state, hold, op)
        for scope in self.scopes:
            give_back(scope.state, hold, charge, now, is_key=scope.is_key)
        return charge.micro


def test_without_limits_everything_is_admitted() -> None:
    hold = Account(Limits()).held(output_tokens=10**9)
    assert (hold.counts["output_tokens"], hold.counts["requests"]) == (10**9, 1)


def test_requests_a_minute_are_a_bucket() -> None:
    account = Account(Limits(requests_per_minute=2))
    account.held()
    account.held()
    refused = account.refused()
    assert (refused.code, refused.limit, refused.retry_after_s) == ("rate_limit_exceeded", "requests_per_minute", 30)
    assert refused.message == "Rate limit exceeded. You have used 2 of your 2 requests for this minute."
    account.refused(NOON + 29_999)
    account.held(NOON + 30_000)
    account.refused(NOON + 30_000)


def test_rate_headers_speak_of_the_tightest() -> None:
    account = Account(Limits(requests_per_minute=60, tokens_per_minute=600), Limits(requests_per_minute=6))
    account.held()
    assert rates(account.scopes, NOON) == RateState(6, 5, 10_000, 600, 570, 3_000)


def test_tokens_a_minute_come_back_when_the_estimate_was_high() -> None:
    account = Account(Limits(tokens_per_minute=60))
    hold = account.held()
    refused = account.refused(output_tokens=30)
    assert (refused.limit, refused.retry_after_s) == ("tokens_per_minute", 10)
    assert (
        refused.message
        == "Rate limit exceeded. You have used 30 of your 60 tokens for this minute. This request needs 40."
    )
    account.close(hold, output=5)
    account.held(output_tokens=30)


def test_tokens_a_minute_shrink_an_open_answer_to_the_bucket_only() -> None:
    account = Account(Limits(tokens_per_minute=60))
    assert account.held(output_tokens=500, explicit=False).counts["output_tokens"] == 50
    assert account.refused(output_tokens=500, explicit=False).retry_after_s == 60
    larger = Account(Limits(tokens_per_minute=60)).refused(output_tokens=500)
    assert larger.message.endswith("This request needs 510 tokens and your limit is 60 tokens a minute.")


def test_concurrency_has_a_retry_after_from_how_long_calls_take() -> None:
    account = Account(Limits(concurrent_requests=2))
    hold = account.held()
    account.close(hold, now=NOON + 80_000)
    account.held()
    account.held()
    refused = account.refused()
    assert (refused.limit, refused.retry_after_s) == ("concurrent_requests", 5)
    assert refused.message == "Rate limit exceeded. 2 of your 2 concurrent requests are in progress."


def test_credits_held_is_not_credits_used_up() -> None:
    account = Account(Limits(credits_monthly_micro=100))
    hold = account.held()
    account.held()
    refused = account.refused()
    assert (refused.code, refused.limit) == ("credits_held", "credits")
    assert refused.message == (
        "Credits held by calls in flight: of the 0.0001 that are left, 0.0001 are held, and this request needs up to "
        "0.00005. Try again when they have ended."
    )
    account.close(hold)
    assert account.refused().code == "credits_held"
    used_up = account.refused(output_tokens=21)
    assert (used_up.code, used_up.retry_after_s) == ("insufficient_quota", 12 * 3600)
    assert used_up.message == (
        "Credits used up. You have used 0.00005 of your 0.0001 credits for this month. "
        "This request needs up to 0.000052."
    )


def test_an_open_answer_shrinks_to_what_is_affordable() -> None:
    account = Account(Limits(credits_monthly_micro=31))
    assert account.refused(output_tokens=100, explicit=False, output_minimum=11).code == "insufficient_quota"
    hold = account.held(output_tokens=100, explicit=False)
    assert (hold.counts["output_tokens"], hold.micro) == (10, 30)


def test_what_is_free_needs_no_credits() -> None:
    account = Account(Limits(credits_monthly_micro=0))
    assert account.held(prices={}).micro == 0
    assert account.refused().code == "insufficient_quota"


def test_months_credits_go_before_top_ups() -> None:
    account = Account(Limits(credits_monthly_micro=60))
    account.state.topup[0] = 100
    first, second, third = account.held(), account.held(), account.held()
    assert [hold.topup for hold in (first, second, third)] == [0, 40, 50]
    assert credits_left(account.scopes, NOON) == 10
    account.close(first, output=0)  # 40 of the month are free again
    account.close(third)
    account.close(second)
    assert account.state.credits["2026-10"] == [60, 0]
    assert account.state.topup == [100, 50, 0]
    assert account.held(NOON + DAY).topup == 0, "a new month has credits of its own"


def test_a_lowered_limit_takes_nothing_from_calls_in_flight() -> None:
    account = Account(Limits(credits_monthly_micro=100))
    hold = account.held()
    account.scopes = (replace(account.scopes[0], limits=Limits(credits_monthly_micro=10)),)
    assert account.refused().code == "insufficient_quota"
    assert account.close(hold) == 50
    assert account.state.credits["2026-10"] == [50, 0]


def test_a_request_belongs_to_the_period_of_its_reserve() -> None:
    account = Account(Limits(credits_monthly_micro=60, quotas=(Quota(name="q", meter="Tokens", limit=40),)))
    late = OCTOBER_31 + DAY - 1000
    hold = account.held(late)
    account.held(late + 2000)  # November
    account.close(hold, now=late + 3000)
    assert account.state.credits == {"2026-10": [50, 0], "2026-11": [0, 50]}
    assert account.state.counts["2026-10"]["small"] == {
        "input_tokens": [10, 0],
        "requests": [1, 0],
        "output_tokens": [20, 0],
    }


def test_past_periods_are_forgotten_once_nothing_is_held_in_them() -> None:
    account = Account(Limits())
    hold = account.held()
    account.held(NOON + 40 * DAY)
    assert "2026-10" in account.state.counts
    account.close(hold, now=NOON + 40 * DAY)
    account.held(NOON + 40 * DAY)
    assert sorted(account.state.counts) == sorted(period_keys(NOON + 40 * DAY))
    assert list(account.state.credits) == ["2026-12"]


@pytest.mark.parametrize(
    ("period", "wait", "words"),
    [("Day", 12 * HOUR, "today"), ("Week", 36 * HOUR, "for this week"), ("Month", 12 * HOUR, "for this month")],
)
def test_quotas_say_when_they_begin_anew(period: Any, wait: int, words: str) -> None:
    account = Account(Limits(quotas=(Quota(name="q", meter="Tokens", limit=30, period=period),)))
    account.close(account.held())
    refused = account.refused()
    assert refused.message == f"Rate limit exceeded. You have used 30 of your 30 tokens {words}."
    assert refused.retry_after_s == wait // 1000
    account.held(NOON + wait)


def test_the_contracts_words() -> None:
    account = Account(Limits(quotas=(Quota(name="q", meter="Tokens", limit=10_000),)))
    account.close(account.held(output_tokens=9_990), output=9_990)
    assert account.refused().message == (
        "Rate limit exceeded. You have used 10,000 of your 10,000 tokens for this month."
    )


@pytest.mark.parametrize("meter", sorted(set(METERS) - {"Requests", "Tokens", "OutputTokens"}))
def test_every_meter_counts_its_units(meter: Meter) -> None:
    units, size = METERS[meter]
    account = Account(Limits(quotas=(Quota(name="q", meter=meter, limit=3),)))
    prompt = {units[0]: 2 * size}
    hold = account.held(prompt=prompt, output_tokens=0)
    refused = account.refused(prompt=prompt, output_tokens=0)
    assert "You have used 2 of your 3 " in refused.message
    assert "Part of it is held by calls in flight." in refused.message
    charge = settle(account.state, hold, Settle(hold.charge_id, {units[0]: size}, "ok"))  # type: ignore[dict-item]
    give_back(account.state, hold, charge, NOON, is_key=False)
    account.held(prompt=prompt, output_tokens=0)


def test_a_quota_of_other_models_is_not_asked() -> None:
    account = Account(Limits(quotas=(Quota(name="q", meter="Tokens", limit=0, model_ids=("large",)),)))
    account.held()
    assert account.refused(model_id="large").limit == "quota"


def test_only_successful_requests_count() -> None:
    account = Account(Limits(quotas=(Quota(name="q", meter="Requests", limit=1),), trial_requests=1))
    for status, output in (("error", 3), ("released", 0), ("cancelled", 0)):
        account.close(account.held(), status=status, output=output)
    hold = account.held()
    assert account.refused().retry_after_s == 1, "held by a call in flight, which may fail"
    account.close(hold, status="cancelled", output=1)
    assert account.refused().limit == "trial"


def test_a_trial_ends() -> None:
    account = Account(Limits(trial_seconds=3600), first_key=NOON)
    account.held(NOON + HOUR - 1)
    refused = account.refused(NOON + HOUR)
    assert (refused.code, refused.limit) == ("insufficient_quota", "trial")


def test_a_fallback_counts_no_second_request_a_minute() -> None:
    account = Account(Limits(requests_per_minute=1))
    account.held()
    account.held(replaces="the-first")


def test_limits_of_key_and_account_are_both_kept() -> None:
    account = Account(Limits(concurrent_requests=5), Limits(credits_monthly_micro=70))
    account.held()
    assert account.refused().code == "credits_held"
    assert account.scopes[1].state.credits["2026-10"] == [0, 50]
    assert account.scopes[1].state.topup == [0, 0, 0]


def test_zero_means_nothing() -> None:
    for limits in (
        Limits(requests_per_minute=0),
        Limits(tokens_per_minute=0),
        Limits(concurrent_requests=0),
        Limits(credits_monthly_micro=0),
        Limits(trial_requests=0),
        Limits(quotas=(Quota(name="q", meter="Requests", limit=0),)),
    ):
        refused = Account(limits).refused()
        assert refused.retry_after_s is not None
        assert refused.retry_after_s >= 1


def test_states_and_holds_survive_their_json() -> None:
    account = Account(Limits(requests_per_minute=5, tokens_per_minute=500, credits_monthly_micro=60))
    account.state.topup[0] = 100
    hold = account.held()
    account.close(account.held(output_tokens=25))
    assert decode(encode(account.state)) == account.state
    row = {"charge_id": hold.charge_id, "owner": hold.owner, "account": hold.account, "key_subject": None}
    row |= {"model_id": hold.model_id, "deadline_ms": hold.deadline, "covered_output": 0, "covered_prompt": None}
    row |= {"idempotency": None}
    assert hold_from_row(row | {"body": hold_to_json(hold)}) == hold


@pytest.mark.parametrize(
    ("now", "keys"),
    [
        (1_798_761_599_999, ("2026-12-31", "2026-W53", "2026-12")),
        (1_798_761_600_000, ("2027-01-01", "2026-W53", "2027-01")),
        (1_709_164_800_000, ("2024-02-29", "2024-W09", "2024-02")),
    ],
)
def test_periods(now: int, keys: tuple[str, str, str]) -> None:
    assert period_keys(now) == keys
    for period, key in zip(("Day", "Week", "Month"), keys, strict=True):
        first, after = period_bounds(period, now)  # type: ignore[arg-type]
        assert first <= now < after
        assert key_bounds(key) == (first, after)
        assert period_key(period, first) == period_key(period, after - 1) == key  # type: ignore[arg-type]
        assert period_key(period, first - 1) != key != period_key(period, after)  # type: ignore[arg-type]


def test_a_reserve_has_a_deadline_that_ends() -> None:
    op: Reserve = reserve(deadline_ms=10**15)
    hold = admit((Scope(State(), Limits()),), op, NOON, None)
    assert isinstance(hold, Hold)
    assert hold.deadline == NOON + 7 * DAY


def test_a_hold_covers_its_first_tokens_but_no_more_than_it_grants() -> None:
    account = Account(Limits())
    hold = account.held(output_tokens=500, covered=64)
    assert last_known(hold).counts["output_tokens"] == 64  # what a replica that dies now is charged for
    assert account.held(output_tokens=10, covered=64).covered_output == 10
    assert "output_tokens" not in last_known(account.held(output_tokens=500)).counts
