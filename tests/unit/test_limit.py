"""The gateway's time limit: what ends it, and whose cancellation is whose."""

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from tollway_serving.gateway.limit import Alarm, Limit


async def test_what_takes_too_long_is_a_timeout_and_the_task_goes_on() -> None:
    with pytest.raises(TimeoutError), Limit(0.01):
        await asyncio.Event().wait()
    await asyncio.sleep(0)  # no cancellation is left over
    with Limit(60):
        await asyncio.sleep(0)


async def test_the_outer_limit_is_not_taken_for_the_inner_one() -> None:
    reached = []

    async def inner() -> None:
        try:
            with Limit(60):
                await asyncio.Event().wait()
        except TimeoutError:
            reached.append("inner")

    with pytest.raises(TimeoutError), Limit(0.01):
        await inner()
    assert reached == []


async def test_a_task_that_somebody_cancels_stays_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        with Limit(60):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_came_while_this_process_stood_still_has_come_in_time() -> None:
    """As with a gateway that had no CPU: the byte is in the socket, and the timer is due, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        with Limit(0.2):
            reading = asyncio.ensure_future(reader.read(1))
            await asyncio.sleep(0)
            theirs.send(b"x")
            time.sleep(0.5)  # noqa: ASYNC251 - that is the point
            assert await reading == b"x"
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        with pytest.raises(TimeoutError), Limit(0.2):  # a peer that sends nothing is late all the same
            await reader.read(1)
        writer.close()


class Rings(Alarm):
    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        super().__init__(seconds)
        self.then = then
        self.set(asyncio.get_running_loop())

    def ring(self) -> None:
        self.then()


async def test_an_alarm_that_fails_leaves_the_others_theirs() -> None:
    def fail() -> None:
        raise LookupError

    rung = asyncio.Event()
    Rings(0.01, fail)
    Rings(0.02, rung.set)
    await asyncio.wait_for(rung.wait(), 5)
    with pytest.raises(TimeoutError), Limit(0.01):
        await asyncio.Event().wait()


async def test_an_alarm_that_is_moved_rings_later_and_one_that_is_cancelled_not_at_all() -> None:
    rung: list[str] = []
    done = asyncio.Event()
    moved, cancelled = Rings(0.01, lambda: rung.append("moved")), Rings(0.01, lambda: rung.append("cancelled"))
    moved.move(time.monotonic() + 0.2)
    cancelled.cancel()
    Rings(0.1, lambda: rung.append("first"))
    Rings(0.4, done.set)
    await asyncio.wait_for(done.wait(), 5)
    assert rung == ["first", "moved"]
