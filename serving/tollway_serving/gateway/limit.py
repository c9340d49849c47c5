"""A time limit on part of a request: `asyncio.timeout` without its coroutines, which cost more than the timer itself.

Used by `call`, `fallback`, `relay` and `http_client`, several times a request.
"""

import asyncio
from types import TracebackType
from typing import Final

_STALLED_S: Final = 0.1
PATIENCE_S: Final = 0.25


def stalled(loop: asyncio.AbstractEventLoop, due: float) -> bool:
    """Whether this process itself did not run when a timer was due (loop time). What it waits for may be in its sockets
    then, which are looked at after the timers: nobody is to blame before another PATIENCE_S are over."""
    return loop.time() - due > _STALLED_S


class Limit:
    """`with Limit(seconds):` inside of a task; what is awaited within raises TimeoutError when the time is over."""

    __slots__ = ("_before", "_loop", "_over", "_patient", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a limit needs a task")
        self._task = task
        self._before = task.cancelling()
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._patient = False
        self._timer = self._loop.call_later(max(0.0, self._seconds), self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Somebody else may have cancelled the task as well: then it stays cancelled.
        if self._over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        if not self._patient and stalled(self._loop, self._timer.when()):
            self._patient = True
            self._timer = self._loop.call_later(PATIENCE_S, self._end)
            return
        self._over = True
        self._task.cancel()
