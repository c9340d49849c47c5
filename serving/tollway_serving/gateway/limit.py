"""A time limit on part of a request: `asyncio.timeout` without its coroutines, which cost more than the timer itself.

Used by `call`, `fallback` and `relay`, several times a request.
"""

import asyncio
from types import TracebackType


class Limit:
    """`with Limit(seconds):` inside of a task; what is awaited within raises TimeoutError when the time is over."""

    __slots__ = ("_before", "_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a limit needs a task")
        self._task = task
        self._before = task.cancelling()
        self._over = False
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._seconds), self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Somebody else may have cancelled the task as well: then it stays cancelled.
        if self._over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._over = True
        self._task.cancel()
