"""Logs of the gateway: rare events through structlog, one line a request straight to a buffer. Set up by `app`.

A line a request through any logging library costs more than the request's own work, so that lines are made by orjson
and written a few times a second. No line ever holds a secret: a request's line names its key by its object only.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO

import orjson
import structlog

_FLUSH_S = 0.2
_FLUSH_LINES = 500


def configure() -> None:
    """JSON lines on standard error; called once by whoever owns the process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda value, **_: orjson.dumps(value, default=str).decode()),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


class AccessLog:
    """Lines are written at the latest 0.2 s after their request, and at close."""

    def __init__(self, enabled: bool, out: BinaryIO | None = None) -> None:
        self._enabled = enabled
        self._out = out
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._stamp = -1, ""  # made once a second, not once a line

    def write(self, at: float, fields: dict[str, Any]) -> None:
        """`at` is seconds since the epoch; `fields` becomes the line, with the time added."""
        if not self._enabled:
            return
        second, thousandths = divmod(int(at * 1000), 1000)
        if second != self._second:
            self._second, self._stamp = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        stamp = f"{self._stamp}.{thousandths:03d}Z"
        fields["timestamp"] = stamp
        self._lines.append(orjson.dumps(fields))
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        out = self._out if self._out is not None else getattr(sys.stderr, "buffer", None)
        text = b"\n".join(lines) + b"\n"
        try:
            if out is not None:
                out.write(text)
                out.flush()
            else:
                sys.stderr.write(text.decode())
        except (OSError, ValueError):
            return  # a closed standard error must not end requests; the ledger has them all
