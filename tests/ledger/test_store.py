"""What the gateway may rely on, the same on both databases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledger import catalogue, ledger, publisher, reserve, settle

from tollway_serving.contract.catalogue import Catalogue, KeyEntry, Limits, Quota
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.ops import (
    Cover,
    HoldClosed,
    LedgerUnavailable,
    Receipt,
    Refused,
    Reserved,
    Settle,
    Stale,
    UnknownCharge,
)
from tollway_serving.ledger.publish import DatabasePublisher
from tollway_serving.ledger.store import Store, open_ledger
from tollway_serving.ledger.verify import verify


@pytest.fixture
async def operator(url: str) -> AsyncIterator[DatabasePublisher]:
    async with publisher(url, catalogue()) as opened:
        yield opened


@pytest.fixture
async def store(url: str, operator: DatabasePublisher) -> AsyncIterator[Store]:
    """Whatever a test did, the books are right afterwards."""
    async with ledger(url) as opened:
        yield opened
    assert (await verify(url)).problems == []


async def test_holds_then_charges_what_was_used(store: Store, operator: DatabasePublisher) -> None:
    op = reserve(account_limits=Limits(credits_monthly_micro=100))
    reserved = await store.submit(op)
    assert isinstance(reserved, Reserved)
    assert (reserved.held_micro, reserved.output_tokens, reserved.credits_left_micro) == (50, 20, 50)
    assert await operator.open_holds() == {"small": 1}
    receipt = await store.submit(settle(op, output=3))
    assert receipt == Receipt(op.charge_id, 16, 0, {"input_tokens": 10, "output_tokens": 3, "requests": 1})
    assert await operator.open_holds() == {}
    usage = (await operator.usage({"team/a0": "ml/pro"}))["team/a0"]
    assert usage.credits_used_micro == 16


async def test_never_charges_more_than_was_held(store: Store) -> None:
    op = reserve()
    await store.submit(op)
    receipt = await store.submit(settle(op, output=30))
    assert (receipt.charged_micro, receipt.overrun_micro) == (50, 20)


async def test_settles_once(store: Store) -> None:
    op = reserve()
    await store.submit(op)
    first = await store.submit(settle(op, output=3))
    assert await store.submit(settle(op, output=9)) == first
    assert await asyncio.gather(*(store.submit(settle(op, output=n)) for n in range(5))) == [first] * 5


async def test_unknown_charge(store: Store) -> None:
    with pytest.raises(UnknownCharge):
        await store.submit(Settle("never-reserved", {}, "ok"))
    with pytest.raises(HoldClosed):
        await store.submit(Cover("never-reserved", 1))


async def test_impossible_counts_fail_alone(store: Store) -> None:
    good, bad = reserve(), reserve()
    await asyncio.gather(store.submit(good), store.submit(bad))
    ok, wrong = store.submit(settle(good)), store.submit(settle(bad, output=-1))
    assert (await ok).charged_micro == 50
    with pytest.raises(ValueError, match="output_tokens"):
        await wrong
    assert (await store.submit(settle(bad))).charged_micro == 50


async def test_a_refusal_takes_nothing(store: Store) -> None:
    limits = Limits(credits_monthly_micro=100, requests_per_minute=60, concurrent_requests=5)
    op = reserve(account_limits=limits, output_tokens=1000)
    refused = await store.submit(op)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.rates.remaining_requests) == ("insufficient_quota", 60)
    with pytest.raises(UnknownCharge):
        await store.submit(settle(op))


async def test_a_batch_cannot_oversubscribe(store: Store) -> None:
    """200 at once for 50: exactly 50 are held, the others could come back."""
    limits = Limits(credits_monthly_micro=50 * 50)
    ops = [reserve(account_limits=limits) for _ in range(200)]
    answers = await asyncio.gather(*(store.submit(op) for op in ops))
    assert sum(isinstance(answer, Reserved) for answer in answers) == 50
    assert {a.code for a in answers if isinstance(a, Refused)} == {"credits_held"}
    held = [op for op, answer in zip(ops, answers, strict=True) if isinstance(answer, Reserved)]
    await asyncio.gather(*(store.submit(settle(op)) for op in held))
    last = await store.submit(reserve(account_limits=limits))
    assert isinstance(last, Refused)
    assert last.code == "insufficient_quota"


async def test_key_and_account_hold_together(store: Store) -> None:
    """A key that narrows its plan counts its own, an account all of its keys'."""
    plan, narrow = Limits(credits_monthly_micro=1000), Limits(credits_monthly_micro=60)
    first = await store.submit(reserve(account_limits=plan, key_limits=narrow))
    assert isinstance(first, Reserved)
    assert first.credits_left_micro == 10
    assert isinstance(await store.submit(reserve(account_limits=plan, key_limits=narrow)), Refused)
    other = await store.submit(reserve(account_limits=plan, key_limits=narrow, key_uid="uid-again"))
    assert isinstance(other, Reserved), "a re-created key has counts of its own"
    everyone = await store.submit(reserve(account_limits=plan))
    assert isinstance(everyone, Reserved)
    assert everyone.credits_left_micro == 850


async def test_covered_output_is_what_a_dead_owner_pays(store: Store, operator: DatabasePublisher) -> None:
    streamed, silent = reserve(deadline_ms=0), reserve(deadline_ms=0)
    await asyncio.gather(store.submit(streamed), store.submit(silent))
    await store.submit(Cover(streamed.charge_id, 7, prompt_tokens=4))
    await store.submit(Cover(streamed.charge_id, 5))
    await asyncio.sleep(0.01)  # the deadline, 0 ms after the reserve
    assert await operator.reap() == 2
    assert await operator.reap() == 0
    assert (await store.submit(settle(streamed))).charged_micro == 4 + 2 * 7
    assert (await store.submit(settle(silent))).charged_micro == 10
    with pytest.raises(HoldClosed):
        await store.submit(Cover(streamed.charge_id, 8))


async def test_a_silent_owner_loses_its_holds(store: Store, operator: DatabasePublisher) -> None:
    orphan, alive = reserve(owner="gone"), reserve()
    await asyncio.gather(store.submit(orphan), store.submit(alive))
    assert await operator.reap() == 1
    assert await operator.open_holds() == {"small": 1}
    await store.submit(settle(alive))


async def test_a_reserve_nobody_waits_for_is_released(store: Store, operator: DatabasePublisher) -> None:
    never_began, under_way = store.submit(reserve()), store.submit(reserve())
    never_began.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the batch is with the database
    under_way.cancel()
    async with asyncio.timeout(5):
        while await operator.open_holds() or store.waiting:  # noqa: ASYNC110 - the state is in the database
            await asyncio.sleep(0.01)


async def test_a_fallback_takes_its_predecessors_place(store: Store, operator: DatabasePublisher) -> None:
    limits = Limits(credits_monthly_micro=60, requests_per_minute=1, concurrent_requests=1)
    first = reserve(account_limits=limits)
    assert isinstance(await store.submit(first), Reserved)
    too_much = reserve(account_limits=limits, model_id="large", output_tokens=1000, replaces=first.charge_id)
    assert isinstance(await store.submit(too_much), Refused)
    assert await operator.open_holds() == {"small": 1}, "a refused fallback leaves the hold that it would replace"
    second = reserve(account_limits=limits, model_id="large", replaces=first.charge_id)
    assert isinstance(await store.submit(second), Reserved)
    assert await operator.open_holds() == {"large": 1}
    assert (await store.submit(settle(first))).charged_micro == 0
    assert (await store.submit(settle(second))).charged_micro == 50


async def test_revoked_suspended_expired_and_changed(store: Store, operator: DatabasePublisher) -> None:
    content = catalogue(accounts=3)
    keys: list[KeyEntry] = list(content.keys)
    keys[1] = keys[1].model_copy(update={"state": "Suspended"})
    keys[2] = keys[2].model_copy(update={"expires_at": 1})
    await operator.publish(content.model_copy(update={"keys": tuple(keys[1:])}))
    codes = [await store.submit(reserve(account=i, catalogue_revision=2)) for i in range(3)]
    assert [c.code for c in codes if isinstance(c, Refused)] == [
        "invalid_api_key",
        "invalid_api_key",
        "expired_api_key",
    ]
    await operator.publish(content)
    assert isinstance(await store.submit(reserve(catalogue_revision=3)), Reserved)
    changed = catalogue(accounts=3, limits=Limits(requests_per_minute=1))
    await operator.publish(changed)
    assert await store.submit(reserve(catalogue_revision=3)) == Stale(4)
    assert isinstance(await store.submit(reserve(catalogue_revision=4)), Reserved)


async def test_what_a_publisher_left_is_read_anew_when_others_changed_it(url: str, operator: DatabasePublisher) -> None:
    """It compares with what it left as long as nobody published since; a hand in the rows is found by reading again."""

    def by_id(content: Catalogue) -> tuple[list[Any], ...]:
        models, plans, keys = content.models, content.plans, content.keys
        return (
            sorted(models, key=lambda model: model.model_id),
            sorted(plans, key=lambda plan: plan.name),
            sorted(keys, key=lambda key: key.sha256),
        )

    content = catalogue(accounts=3)
    without_last = content.model_copy(update={"keys": content.keys[:-1]})
    assert await operator.publish(content) == 2
    assert await operator.publish(content) == 2
    async with publisher(url, without_last) as other:
        assert by_id(await other.published()) == by_id(without_last)
        assert await operator.publish(content) == 4, "what the other one withdrew is back"
        assert by_id(await other.published()) == by_id(content)
    assert await operator.publish(without_last) == 5
    assert by_id(await operator.published()) == by_id(without_last)

    await operator.publish(content)
    by_hand = Database(url)
    try:
        await by_hand.write(lambda connection: connection.execute(sa.delete(schema.catalogue)))
    finally:
        await by_hand.close()
    assert (await operator.published()).keys == ()
    await operator.publish(content)
    assert by_id(await operator.published()) == by_id(content)


async def test_what_touches_others_is_not_stale(store: Store, operator: DatabasePublisher) -> None:
    await operator.publish(catalogue(accounts=2))
    assert isinstance(await store.submit(reserve(catalogue_revision=1)), Reserved)


async def test_revocation_is_seen_within_a_second(store: Store, operator: DatabasePublisher) -> None:
    """Without a request: the poll alone."""
    assert (await store.load_catalogue(0)).keys == catalogue().keys
    store.revision_changed.clear()
    await operator.publish(catalogue(accounts=0))
    async with asyncio.timeout(1):
        await store.revision_changed.wait()
    delta = await store.load_catalogue(1)
    assert (delta.revision, delta.removed_keys) == (2, ("hash-0",))


async def test_announces_itself(store: Store, operator: DatabasePublisher) -> None:
    assert await operator.replicas() == ()
    await store.announce("gateway", "http://127.0.0.1:9/metrics")
    (replica,) = await operator.replicas()
    assert (replica.owner, replica.metrics_url) == ("gateway", "http://127.0.0.1:9/metrics")


async def test_what_could_not_be_charged_is_not_let_in(store: Store, operator: DatabasePublisher) -> None:
    """More credits than the database's numbers hold: by one call, and by many."""
    dearest: dict[str, Any] = {"prices": {"output_tokens": 10**15}, "explicit": True}
    refused = await store.submit(reserve(output_tokens=128 * 10**8, **dearest))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.limit) == ("insufficient_quota", "credits")
    for tokens, answer in ((9 * 10**7, Reserved), (2 * 10**7, Refused), (10**7, Reserved), (1, Refused)):
        op = reserve(output_tokens=tokens, **dearest)
        assert isinstance(await store.submit(op), answer)
        if answer is Reserved:
            assert (await store.submit(settle(op, output=tokens))).charged_micro == tokens * 10**9
    assert await operator.open_holds() == {}


async def test_a_hold_that_cannot_be_closed_keeps_no_other_open(
    url: str, store: Store, operator: DatabasePublisher
) -> None:
    async with ledger(url, "another") as other:  # this one knows nothing of them
        for name in "ab":
            await other.submit(reserve(charge_id=name, deadline_ms=0))
    database, body = Database(url), schema.holds.c.body

    async def rewrite(old: str, new: str) -> None:
        change = (
            sa.update(schema.holds).where(schema.holds.c.charge_id == "a").values(body=sa.func.replace(body, old, new))
        )
        await database.write(lambda connection: connection.execute(change).rowcount)

    await rewrite("prices", "prizes")
    async with asyncio.timeout(15):
        while await operator.open_holds() != {"small": 1}:  # noqa: ASYNC110 - the heartbeat has no event
            await asyncio.sleep(0.05)
        await rewrite("prizes", "prices")
        while await operator.open_holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await database.close()


async def test_a_changed_plan_resets_nothing(store: Store) -> None:
    small = Quota(name="small", meter="Tokens", limit=100, model_ids=("small",))
    for _ in range(2):
        op = reserve(account_limits=Limits(quotas=(small,)))
        await store.submit(op)
        await store.submit(settle(op))
    wider = Quota(name="all", meter="OutputTokens", limit=50, period="Day")
    refused = await store.submit(reserve(account_limits=Limits(quotas=(wider,))))
    assert isinstance(refused, Refused)
    assert "You have used 40 of your 50 output tokens today" in refused.message


async def test_closing_finishes_what_was_submitted(url: str, operator: DatabasePublisher) -> None:
    op = reserve()
    async with ledger(url, "short-lived") as store:
        await store.submit(op)
        last = store.submit(settle(op))
    assert (await last).charged_micro == 50
    with pytest.raises(LedgerUnavailable):
        await store.submit(reserve())


async def test_no_ledger_yet(url: str) -> None:
    store = open_ledger(url, "gateway")
    with pytest.raises(LedgerUnavailable):
        await store.start()
    await store.close()


async def test_the_same_reserve_again_is_one_hold(store: Store, operator: DatabasePublisher) -> None:
    """As after a commit whose answer was lost."""
    op = reserve(account_limits=Limits(credits_monthly_micro=60))
    first = await store.submit(op)
    again = await store.submit(replace(op))
    assert isinstance(again, Reserved)
    assert again == first
    assert await operator.open_holds() == {"small": 1}
