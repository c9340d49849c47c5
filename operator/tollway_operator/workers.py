"""Carries out a plan's writes for `execute`: many at once, bounded, and none may hold up another.

A write is named by a key, such as the object that it is for. While one is in flight no second one of that key starts;
one that failed is not tried again before its own back-off has passed. A pass waits for its writes only for a moment:
what is slower ends behind it and wakes the loop when it is done.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from tollway_operator.errors import OperatorError

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 300.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a key's write."""

    error: Exception
    attempts: int
    not_before: float  # on the clock of the event loop


class Workers:
    """`done` is called whenever a write ends after its pass stopped waiting for it."""

    def __init__(self, limit: int, done: Callable[[], None]) -> None:
        self._limit = limit
        self._done = done
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._failures: dict[Hashable, Failure] = {}
        self._waiting = False

    def submit(self, key: Hashable, write: Callable[[], Awaitable[None]]) -> bool:
        """Starts a write. False if it must wait: one of this key is in flight or backs off, or all places are taken;
        the next pass will want it again."""
        if key in self._running or len(self._running) >= self._limit or self.backs_off(key):
            return False
        task = asyncio.create_task(self._carry_out(key, write))
        self._running[key] = task
        return True

    @property
    def free(self) -> int:
        """How many writes could start now."""
        return self._limit - len(self._running)

    def backs_off(self, key: Hashable) -> bool:
        failure = self._failures.get(key)
        return failure is not None and asyncio.get_running_loop().time() < failure.not_before

    def failure(self, key: Hashable) -> Failure | None:
        """The last failure of this key that no success followed."""
        return self._failures.get(key)

    def failures(self) -> dict[Hashable, Failure]:
        return dict(self._failures)

    def forget(self, key: Hashable) -> None:
        """The object is gone or has changed: its next write starts afresh."""
        self._failures.pop(key, None)

    def next_try(self) -> float | None:
        """Seconds until the first back-off ends; None if nothing backs off."""
        now = asyncio.get_running_loop().time()
        return min((max(0.0, failure.not_before - now) for failure in self._failures.values()), default=None)

    async def room(self, seconds: float) -> None:
        """Waits until at least one place is free, `seconds` at the most."""
        if len(self._running) >= self._limit:
            await asyncio.wait(self._running.values(), timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)

    async def rest(self, seconds: float) -> bool:
        """Waits for the writes in flight, `seconds` at the most. Whether all have ended."""
        if self._running:
            self._waiting = True
            try:
                await asyncio.wait(self._running.values(), timeout=seconds)
            finally:
                self._waiting = False
        return not self._running

    async def close(self, seconds: float) -> None:
        """Lets the writes in flight end, and cancels those that take longer than `seconds`."""
        if not await self.rest(seconds):
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, key: Hashable, write: Callable[[], Awaitable[None]]) -> None:
        try:
            await write()
        except (OperatorError, OSError, TimeoutError) as error:
            self._fail(key, error)
        except Exception as error:  # a bug in one write must not end the loop for all the others
            self._fail(key, error)
        else:
            self._failures.pop(key, None)
        finally:
            del self._running[key]
            if not self._waiting:
                self._done()

    def _fail(self, key: Hashable, error: Exception) -> None:
        before = self._failures.get(key)
        attempts = 1 if before is None else before.attempts + 1
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (attempts - 1)) * random.uniform(0.8, 1.2)  # noqa: S311 - spread, no secret
        self._failures[key] = Failure(error, attempts, asyncio.get_running_loop().time() + delay)
