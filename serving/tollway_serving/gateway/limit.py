"""Time limits and alarms of requests, all on one timer of the event loop: a timer each cost more than what they guard.

Used by `call`, `fallback`, `relay`, `heartbeat`, `http_client` and `http_connection`, several times a request; nearly
all of them end before their time. What is due is looked for every 50 ms, so that nothing ends early and hardly anything
late.
"""

import asyncio
import time
from types import TracebackType
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_STEP_S: Final = 0.05
_STALLED_S: Final = 0.1
_PATIENCE_S: Final = 0.25


class Alarm:
    """Calls `ring` once, when `due` (monotonic) has passed. Whoever is not done with it by then may set a new `due` and
    `set` it again; it may also be moved while it is set."""

    __slots__ = ("_clock", "due", "patient")

    def __init__(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        self.patient = False  # it was due once already, when nothing in this process could run

    def set(self, loop: asyncio.AbstractEventLoop) -> None:
        clock = self._clock = _clock(loop)
        clock.alarms.add(self)
        if clock.timer is None:
            clock.start()

    def move(self, due: float) -> None:
        self.due = due
        self.patient = False

    def cancel(self) -> None:
        self._clock.alarms.discard(self)

    def ring(self) -> None:
        raise NotImplementedError


class _Clock:
    """Of one event loop. Its timer runs while an alarm is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.alarms: set[Alarm] = set()
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.timer = self.loop.call_later(_STEP_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        timer = self.timer
        # A process that did not run when it should have may have in its sockets what somebody waits for, and those are
        # looked at after the timers: nobody is to blame before another PATIENCE_S are over.
        stalled = timer is not None and self.loop.time() - timer.when() > _STALLED_S
        for alarm in [alarm for alarm in self.alarms if alarm.due <= now]:
            if stalled and not alarm.patient:
                alarm.patient = True
                alarm.due = now + _PATIENCE_S
            elif alarm in self.alarms:  # nothing that rang before has cancelled it
                self.alarms.discard(alarm)
                try:
                    alarm.ring()
                except Exception:  # must not silence all others
                    log.exception("alarm_failed", alarm=type(alarm).__name__)
        self.timer = None
        if self.alarms:
            self.start()


_known: _Clock | None = None


def _clock(loop: asyncio.AbstractEventLoop) -> _Clock:
    """A process has one loop that serves requests."""
    global _known  # noqa: PLW0603
    if _known is None or _known.loop is not loop:
        _known = _Clock(loop)
    return _known


class Limit(Alarm):
    """`with Limit(seconds):` inside of a task; what is awaited within raises TimeoutError when the time is over."""

    __slots__ = ("_before", "_over", "_task")

    def __enter__(self) -> "Limit":
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a limit needs a task")
        self._task = task
        self._before = task.cancelling()
        self._over = False
        self.set(task.get_loop())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        # Somebody else may have cancelled the task as well: then it stays cancelled.
        if self._over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def ring(self) -> None:
        self._over = True
        self._task.cancel()
