"""How many operations a transaction waits for: all that come together, and nobody waits who is alone."""

import asyncio
from collections.abc import Sequence

import pytest

from tollway_serving.ledger.backend import Batch
from tollway_serving.ledger.batch import Batcher, Crowd
from tollway_serving.ledger.ops import LedgerUnavailable, Settle
from tollway_serving.ledger.transaction import AnyOp


class Watched:
    """A database that takes some turns of the event loop for a transaction, and keeps how large each was."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def transact(self, ops: Sequence[AnyOp]) -> Batch:
        self.sizes.append(len(ops))
        await turns(4)
        return Batch([None for _ in ops], 1)

    async def poll(self) -> int:
        return 1


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def busy(callers: int, each: int) -> list[int]:
    """The sizes with so many callers, half of whom are always a little late for the next transaction."""
    database = Watched()
    batcher = Batcher(database, lambda _: None)
    batcher.start()

    async def caller(number: int) -> None:
        for operation in range(each):
            await batcher.submit(Settle(f"{number}-{operation}", {}, "ok"))
            await turns(3 * (number % 2))

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller(number) for number in range(callers)))
        await batcher.close(5)
    assert sum(database.sizes) == callers * each
    return database.sizes


async def test_callers_who_come_back_together_share_a_transaction() -> None:
    sizes = await busy(16, 200)
    assert sorted(sizes)[len(sizes) // 2] == 16


@pytest.mark.parametrize("callers", [1, 3])
async def test_few_never_wait(monkeypatch: pytest.MonkeyPatch, callers: int) -> None:
    monkeypatch.setattr("tollway_serving.ledger.batch._GATHER_S", 3600.0)  # the watchdog would end it with an error
    assert max(await busy(callers, 50)) <= callers


async def test_who_comes_after_a_crowd_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway_serving.ledger.batch._GATHER_S", 3600.0)
    monkeypatch.setattr("tollway_serving.ledger.batch._QUIET_S", 0.0)
    batcher = Batcher(Watched(), lambda _: None)
    batcher.start()
    await asyncio.gather(*(batcher.submit(Settle(f"{number}", {}, "ok")) for number in range(64)))
    await turns(20)
    for number in range(10):
        await batcher.submit(Settle(f"later-{number}", {}, "ok"))
        await turns(20)
    await batcher.close(5)


async def test_a_gathering_ends_with_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway_serving.ledger.batch._GATHER_S", 3600.0)
    batcher = Batcher(Watched(), lambda _: None)
    batcher.start()
    await asyncio.gather(*(batcher.submit(Settle(f"{number}", {}, "ok")) for number in range(64)))
    late = batcher.submit(Settle("late", {}, "ok"))  # waits for the other 63
    await turns(20)
    assert not late.done()
    await batcher.close(5)
    assert late.result() is None


class Choosy(Watched):
    """Refuses every transaction of more than one operation, and never ends the one with the operation "slow"."""

    async def transact(self, ops: Sequence[AnyOp]) -> Batch:
        if len(ops) > 1:
            raise ValueError("one of them is wrong")
        if isinstance(ops[0], Settle) and ops[0].charge_id == "slow":
            await asyncio.Event().wait()
        return await super().transact(ops)


async def test_those_that_wait_for_a_try_of_their_own_are_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway_serving.ledger.batch._ANSWER_S", 0.2)
    batcher = Batcher(Choosy(), lambda _: None)
    batcher.start()
    names = ("first", "slow", "behind", "last")
    first, *others = (batcher.submit(Settle(name, {}, "ok")) for name in names)
    assert await first is None
    assert batcher.waiting == 3
    for future in others:
        with pytest.raises(LedgerUnavailable, match="in time"):
            await future
    await batcher.close(0.1)


@pytest.mark.parametrize("callers", [8, 9, 32, 300])
def test_the_guess_settles_at_who_is_there(callers: int) -> None:
    crowd = Crowd()
    crowd.came(max(8, callers // 2))
    waits = []
    for _ in range(1_000):
        if crowd.size <= callers:
            crowd.came(crowd.size)
        else:
            crowd.stayed_away(callers)
        waits.append(crowd.size > callers)
    assert crowd.size in (callers, callers + 1)
    assert sum(waits[500:]) < 20, "it seldom waits for nobody"


def test_the_guess_forgets_a_crowd_that_has_gone() -> None:
    crowd = Crowd()
    crowd.came(5_000)
    for _ in range(7):
        crowd.stayed_away(1)
    assert crowd.size < 8
