"""Workers: bounded, one write a key at a time, each key with a back-off of its own."""

import asyncio

from tollway_operator.errors import Unreachable
from tollway_operator.workers import Workers


async def test_failures_back_off_by_key() -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    workers = Workers(4, lambda: None)
    calls: list[str] = []

    async def fails() -> None:
        calls.append("fails")
        raise Unreachable("not now")

    async def works() -> None:
        calls.append("works")

    def clock() -> float:
        return now

    loop.time = clock  # type: ignore[method-assign]
    try:
        for expected in (1.2, 2.4, 4.8):  # doubling, and up to a fifth longer
            assert workers.submit("a", fails)
            while workers.free < 4:  # noqa: ASYNC110 - a turn of the loop, with its clock stopped
                await asyncio.sleep(0)
            assert not workers.submit("a", fails)
            assert workers.submit("b", works), "another key doesn't wait"
            while workers.free < 4:  # noqa: ASYNC110 - a turn of the loop, with its clock stopped
                await asyncio.sleep(0)
            retry = workers.next_try()
            assert retry is not None
            assert expected / 1.5 <= retry <= expected
            now += expected
        assert workers.submit("a", works)
        while workers.free < 4:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert workers.failure("a") is None
        assert workers.next_try() is None
    finally:
        del loop.time  # type: ignore[attr-defined]
    assert calls.count("fails") == 3


async def test_places_are_bounded_and_keys_exclusive() -> None:
    done: list[str] = []
    workers = Workers(2, lambda: done.append("woken"))
    gate = asyncio.Event()

    async def waits() -> None:
        await gate.wait()

    assert workers.submit("a", waits)
    assert not workers.submit("a", waits), "one of this key is in flight"
    assert workers.submit("b", waits)
    assert not workers.submit("c", waits), "no place is free"
    assert not await workers.rest(0.01)
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert workers.free == 2
    assert done == ["woken", "woken"], "who waits no longer is told"


async def test_a_bug_in_a_write_is_a_failure_of_that_write() -> None:
    workers = Workers(1, lambda: None)

    async def breaks() -> None:
        raise KeyError("oops")

    workers.submit("a", breaks)
    assert await workers.rest(1)
    failure = workers.failure("a")
    assert failure is not None
    assert isinstance(failure.error, KeyError)


async def test_closing_cancels_what_takes_too_long() -> None:
    workers = Workers(1, lambda: None)
    workers.submit("a", asyncio.Event().wait)  # type: ignore[arg-type] # its answer is not read
    await workers.close(0.01)
    assert workers.free == 1
