"""Records of repeated POSTs, the same on both databases: an answer is kept if and only if it was charged."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledger import catalogue, charge_id, ledger, publisher, reserve, settle

from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger import schema, tidy
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.ops import (
    Answer,
    Begin,
    Begun,
    Cover,
    Forget,
    Kept,
    NotAgain,
    Refused,
    Repeat,
    Reserve,
    Reserved,
    Settle,
)
from tollway_serving.ledger.publish import DatabasePublisher
from tollway_serving.ledger.store import Store
from tollway_serving.ledger.transaction import Expire
from tollway_serving.ledger.verify import verify

ANSWER = Answer((("x-charge-id", "1"), ("x-model-used", "small")), b'{"ok":true}\x00\xff')
IN_PROGRESS, MISMATCH = NotAgain("idempotency_in_progress"), NotAgain("idempotency_mismatch")
NOT_REPLAYABLE = NotAgain("idempotency_not_replayable")


@pytest.fixture
async def operator(url: str) -> AsyncIterator[DatabasePublisher]:
    async with publisher(url, catalogue(accounts=2)) as opened:
        yield opened


@pytest.fixture
async def store(url: str, operator: DatabasePublisher) -> AsyncIterator[Store]:
    async with ledger(url) as opened:
        yield opened
    assert (await verify(url)).problems == []


def begin(name: str = "order-1", *, body: str = "hash", account: str = "team/a0", route: str = "/chat") -> Begin:
    return Begin(account, route, name, charge_id(), body, "gateway")


def forget(op: Begin) -> Forget:
    return Forget(op.account, op.route, op.name, op.attempt)


def held(op: Begin, *, streamed: bool = False, **changes: Any) -> Reserve:
    return reserve(repeat=Repeat(op.route, op.name, op.attempt, streamed), **changes)


async def execute(url: str, statement: Any) -> None:
    database = Database(url)
    await database.write(lambda connection: connection.execute(statement))
    await database.close()


async def test_an_answer_is_given_again_with_its_receipt(store: Store) -> None:
    first = begin()
    assert await store.submit(first) == Begun()
    assert await store.submit(begin()) == IN_PROGRESS
    op = held(first)
    await store.submit(op)
    assert await store.submit(begin()) == IN_PROGRESS
    receipt = await store.submit(settle(op, output=3, answer=ANSWER))
    await store.submit(forget(first))
    assert await store.submit(begin()) == Kept(ANSWER, receipt.charged_micro)
    assert await store.submit(begin(body="another")) == MISMATCH


async def test_others_have_records_of_their_own(store: Store) -> None:
    for other in (begin(), begin("order-2"), begin(account="team/a1"), begin(route="/completions")):
        assert await store.submit(other) == Begun()


async def test_a_begin_that_is_sent_again_because_its_answer_was_lost(store: Store) -> None:
    op = begin()
    assert [await store.submit(op), await store.submit(op)] == [Begun(), Begun()]


async def test_a_failure_that_cost_nothing_leaves_the_next_one_free(store: Store) -> None:
    first = begin()
    await store.submit(first)
    op = held(first)
    await store.submit(op)
    await store.submit(Settle(op.charge_id, {}, "error", http_status=503))
    assert await store.submit(begin()) == Begun()


async def test_a_refused_reserve_leaves_the_next_one_free(store: Store) -> None:
    first = begin()
    await store.submit(first)
    refused = await store.submit(held(first, account_limits=Limits(credits_monthly_micro=1)))
    assert isinstance(refused, Refused)
    assert await store.submit(begin()) == IN_PROGRESS
    await store.submit(forget(first))
    assert await store.submit(begin()) == Begun()


async def test_a_fallback_takes_the_record_with_it(store: Store) -> None:
    first = begin()
    await store.submit(first)
    op = held(first)
    await store.submit(op)
    fallback = held(first, model_id="large", replaces=op.charge_id)
    assert isinstance(await store.submit(fallback), Reserved)
    await store.submit(forget(first))
    assert await store.submit(begin()) == IN_PROGRESS
    receipt = await store.submit(settle(fallback, answer=ANSWER))
    assert await store.submit(begin()) == Kept(ANSWER, receipt.charged_micro)


@pytest.mark.parametrize("status", ["ok", "error", "cancelled"])
async def test_a_stream_that_was_charged_is_not_given_again(store: Store, status: Any) -> None:
    first = begin()
    await store.submit(first)
    op = held(first, streamed=True)
    await store.submit(op)
    await store.submit(settle(op, output=3, status=status))
    assert await store.submit(begin()) == NOT_REPLAYABLE
    assert await store.submit(begin(body="another")) == MISMATCH


async def test_a_whole_answer_that_never_left_costs_nothing(store: Store) -> None:
    """Its gateway is stopped, or dies: the client asks again, and pays for that one."""
    for end in ("cancelled", "expired"):
        first = begin(end)
        await store.submit(first)
        op = held(first)
        await store.submit(op)
        if end == "expired":
            receipt = await store._batcher.submit(Expire(op.charge_id))
        else:
            receipt = await store.submit(settle(op, output=3, status="cancelled"))
        assert receipt.charged_micro == 0
        assert await store.submit(begin(end)) == Begun()


async def test_a_stream_whose_gateway_died_is_charged_once(store: Store) -> None:
    first = begin()
    await store.submit(first)
    op = held(first, streamed=True)
    await store.submit(op)
    await store.submit(Cover(op.charge_id, 5, 10))
    receipt = await store._batcher.submit(Expire(op.charge_id))
    assert receipt.charged_micro == 20
    assert await store.submit(begin()) == NOT_REPLAYABLE


async def test_only_one_of_many_at_once_begins(url: str, store: Store) -> None:
    async with ledger(url, "second") as second:
        answers = await asyncio.gather(*(each.submit(begin()) for each in (store, second) for _ in range(20)))
    assert sorted(map(repr, answers)) == sorted([repr(Begun()), *[repr(IN_PROGRESS)] * 39])


async def test_a_kept_answer_ends_after_a_day(url: str, store: Store, operator: DatabasePublisher) -> None:
    first = begin()
    await store.submit(first)
    op = held(first)
    await store.submit(op)
    await store.submit(settle(op, answer=ANSWER))
    table = schema.idempotency
    day = 24 * 3_600_000
    await execute(url, sa.update(table).values(expires_ms=table.c.expires_ms - day + 60_000))
    await operator.reap()
    assert isinstance(await store.submit(begin()), Kept)
    await execute(url, sa.update(table).values(expires_ms=table.c.expires_ms - 60_000))
    assert await store.submit(begin()) == Begun(), "over, whether anybody has tidied up or not"
    await execute(url, sa.update(table).values(state="kept", expires_ms=1))
    await operator.reap()
    database = Database(url)
    assert await database.read(lambda connection: connection.scalar(sa.select(sa.func.count()).select_from(table))) == 0
    await database.close()


async def test_a_record_that_a_dead_gateway_left_open_is_dropped(
    url: str, store: Store, operator: DatabasePublisher
) -> None:
    orphan = Begin("team/a0", "/chat", "orphan", charge_id(), "hash", "dead")
    alive = begin("alive")
    await store.submit(orphan)
    await store.submit(alive)
    held_by_dead = Begin("team/a0", "/chat", "held", charge_id(), "hash", "dead")
    await store.submit(held_by_dead)
    op = held(held_by_dead, owner="gateway")
    await store.submit(op)
    await operator.reap()
    again = [await store.submit(begin(name)) for name in ("orphan", "alive", "held")]
    assert again == [Begun(), IN_PROGRESS, IN_PROGRESS]
    await store.submit(Settle(op.charge_id, {}, "released"))


async def test_verify_finds_an_answer_without_its_charge(url: str, store: Store) -> None:
    first = begin()
    await store.submit(first)
    op = held(first)
    await store.submit(op)
    await store.submit(settle(op, answer=ANSWER))
    await execute(url, sa.update(schema.idempotency).values(charged_micro=1))
    assert any("is kept for 1" in problem for problem in (await verify(url)).problems)
    await execute(url, sa.update(schema.idempotency).values(charged_micro=50))


@pytest.mark.parametrize("days", [0, tidy.MIN_USAGE_DAYS - 1])
def test_too_short_a_retention(days: int) -> None:
    with pytest.raises(ValueError, match="at least 45"):
        tidy.drop_usage(None, days)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("days", "said"), [(-1, "at least 45"), (44, "at least 45"), (36_501, "at most 36500"), (10**12, "at most 36500")]
)
def test_a_retention_that_can_not_be_meant(days: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tidy.usage_days(days)
