"""How many operations a transaction waits for: all that come together, and nobody waits who is alone."""

import asyncio
from collections.abc import Sequence

import pytest

from tollway_serving.ledger.backend import Batch
from tollway_serving.ledger.batch import Batcher, Crowd
from tollway_serving.ledger.ops import Settle
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


async def test_whoever_is_alone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway_serving.ledger.batch._GATHER_S", 3600.0)
    assert await busy(1, 50) == [1] * 50
    assert len(await busy(3, 50)) >= 50


@pytest.mark.parametrize("callers", [4, 5, 32, 300])
def test_the_guess_settles_at_who_is_there(callers: int) -> None:
    crowd = Crowd()
    crowd.came(max(4, callers // 2))
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
    crowd.came(512)
    for _ in range(25):
        crowd.stayed_away(1)
    assert crowd.size < 4
