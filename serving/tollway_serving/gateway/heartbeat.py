"""Comments in a stream that is silent for long, so that no proxy or client gives it up. Made and ended by `call`.

A stream waits for a model that starts or reads a long prompt, or pauses between tokens. Costs a call one alarm: no
task, and nothing a chunk but the time of the last send.
"""

import asyncio
import time
from typing import Protocol

import structlog

from tollway_serving.gateway.limit import Alarm

log = structlog.get_logger(__name__)

TEXT = "waiting"


class Line(Protocol):
    """Where the comments go: a call."""

    request_id: str
    sent_at: float | None  # monotonic, of the last bytes; None while some are on their way

    async def comment(self, text: str) -> None: ...


class Heartbeat(Alarm):
    """From its making to `stop` or `cancel`: a comment whenever nothing was sent for `interval_s`."""

    __slots__ = ("_beat", "_interval_s", "_line")

    def __init__(self, line: Line, interval_s: float) -> None:
        super().__init__(interval_s)
        self._line = line
        self._interval_s = interval_s
        self._beat: asyncio.Task[None] | None = None
        self.set(asyncio.get_running_loop())

    def _look_in(self, seconds: float) -> None:
        self.move(time.monotonic() + seconds)
        self.set(asyncio.get_running_loop())

    def ring(self) -> None:
        sent_at = self._line.sent_at
        # A client that does not read what is on its way to it would not read a comment behind that.
        left = self._interval_s if sent_at is None else sent_at + self._interval_s - time.monotonic()
        if left > 0:
            self._look_in(left)
        else:
            self._beat = asyncio.create_task(self._send(), name="heartbeat")

    async def _send(self) -> None:
        try:
            await self._line.comment(TEXT)
        except Exception:
            log.exception("heartbeat_failed", request_id=self._line.request_id)
            return
        self._look_in(self._interval_s)

    async def quiet(self) -> None:
        """Waits for a comment that is on its way."""
        if self._beat is not None and not self._beat.done():
            await asyncio.wait([self._beat])

    async def stop(self) -> None:
        """No comment is sent after this returns."""
        await self.quiet()
        self.cancel()

    def cancel(self) -> None:
        """The same at once, for a client that has gone."""
        super().cancel()
        if self._beat is not None:
            self._beat.cancel()
