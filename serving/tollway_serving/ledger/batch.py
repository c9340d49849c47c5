"""Turns single operations into batches, for `store`: what arrives while a transaction runs goes into the next one, and
under load so does what is about to arrive.

`submit` never awaits, so that a cancelled handler can't lose its settlement. Each operation's future is answered
within the time limit; behind it, a settlement is tried again until the database takes it (it is idempotent), and a
reserve whose waiter is gone is released.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from tollway_serving.ledger.backend import Backend
from tollway_serving.ledger.database import LIMIT_S
from tollway_serving.ledger.ops import Cover, LedgerUnavailable, Reserve, Reserved, Settle
from tollway_serving.ledger.transaction import AnyOp

log = structlog.get_logger(__name__)

MAX_BATCH = 512
MAX_WAITING = 20_000
_ANSWER_S = LIMIT_S - 0.2  # a watchdog that ticks every 0.1 s then keeps the limit
_TICK_S = 0.1
_GATHER_S = 0.003  # for which a transaction waits for more operations, at most
_CROWD = 8  # operations that must have met before any waits for others
_PATIENCE = 32  # transactions until it is tried again whether one more would come
_QUIET_S = 0.02  # without an operation, and the crowd has gone
_BACKOFF_S = (0.05, 0.1, 0.2, 0.4)


@dataclass(slots=True, eq=False)
class _Entry:
    op: AnyOp
    future: "asyncio.Future[Any]"
    since: float
    tried: bool = False  # part of a transaction whose end is unknown


class Crowd:
    """Guesses how many operations come together, and are worth a wait: `size`.

    Most of a transaction costs the same for one operation as for many. Those of n busy connections answer together and
    come back together, so n in each is what they settle at, and each waits less than for two transactions of half the
    size. Few operations at a time never wait.
    """

    def __init__(self) -> None:
        self.size = 1
        self._patience = 0

    def came(self, number: int) -> None:
        """`size` or more were there, or nobody waited for them. More might have come."""
        if number < _CROWD:
            self.size = 1
        elif number > self.size:
            self.size = min(number, MAX_BATCH)
        elif self._patience > 0:
            self._patience -= 1
        else:
            self.size = min(self.size + 1, MAX_BATCH)

    def stayed_away(self, number: int) -> None:
        """In all the time no more than these came."""
        if number == self.size - 1:
            self._patience = _PATIENCE
        self.size -= -(-(self.size - number) // (4 if number >= _CROWD else 2))

    def gone(self) -> None:
        """Nothing came for a while."""
        self.size = 1


class Batcher:
    def __init__(self, backend: Backend, seen: Callable[[int], None]) -> None:
        """`seen` is called with every revision of the catalogue that a batch has read."""
        self._backend = backend
        self._seen = seen
        self._waiting: deque[_Entry] = deque()
        self._running: list[_Entry] = []
        self._wake = asyncio.Event()
        self._enough = 1  # waiting operations that wake the task
        self._crowd = Crowd()
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._closing = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="tollway-ledger-batches")
        self._tick()

    async def close(self, limit_s: float) -> None:
        """Takes nothing more and finishes what there is, for `limit_s` at most."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=limit_s)
            if not done:
                _say("error", "ledger.unsettled_at_close", operations=len(self._waiting) + len(self._running))
                self._task.cancel()
                await asyncio.wait({self._task})
        if self._watch is not None:
            self._watch.cancel()
        for entry in (*self._running, *self._waiting):
            _fail(entry.future, LedgerUnavailable("closed"))

    @property
    def waiting(self) -> int:
        """Operations that the database has not taken yet."""
        return len(self._waiting) + len(self._running)

    def submit(self, op: AnyOp) -> "asyncio.Future[Any]":
        entry = _Entry(op, self._loop.create_future(), self._loop.time())
        if self._task is None or self._task.done() or (self._closing and isinstance(op, Reserve)):
            _fail(entry.future, LedgerUnavailable("closed"))
        elif len(self._waiting) >= MAX_WAITING and isinstance(op, Reserve):
            _fail(entry.future, LedgerUnavailable("too many operations are waiting"))
        else:
            self._waiting.append(entry)
            if len(self._waiting) >= self._enough:
                self._wake.set()
        return entry.future

    async def _run(self) -> None:
        failures = 0
        while True:
            if not self._waiting:
                if self._closing:
                    return
                since = self._loop.time()
                self._wake.clear()
                await self._wake.wait()
                if self._loop.time() - since > _QUIET_S:
                    self._crowd.gone()
                continue
            await self._gather()
            batch = self._next_batch()
            if not batch:
                continue
            try:
                done = await self._backend.transact([entry.op for entry in batch])
            except LedgerUnavailable as error:
                self._running = []
                if failures == 0:
                    _say("warning", "ledger.unavailable", reason=str(error))
                self._again(batch)
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            except Exception as error:  # one wrong operation must not stop the others, nor this task
                self._running = []
                await self._one_by_one(batch, error)
                continue
            failures = 0
            self._running = []
            self._seen(done.revision)
            for entry, result in zip(batch, done.results, strict=True):
                self._answer(entry, result)

    async def _gather(self) -> None:
        """Waits for as many operations as came together before."""
        wanted = self._crowd.size
        if wanted < _CROWD or len(self._waiting) >= wanted or self._closing:
            self._crowd.came(len(self._waiting))
            return
        self._enough = wanted
        self._wake.clear()
        alarm = self._loop.call_later(_GATHER_S, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            alarm.cancel()
            self._enough = 1
        if len(self._waiting) < wanted:
            self._crowd.stayed_away(len(self._waiting))
        else:
            self._crowd.came(len(self._waiting))

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < MAX_BATCH:
            entry = self._waiting.popleft()
            if entry.future.done() and not isinstance(entry.op, Settle):
                if entry.tried and isinstance(entry.op, Reserve):
                    entry = self._release(entry.op)
                elif not isinstance(entry.op, Reserve | Cover):
                    pass  # the reaper's: nobody waits for it, and it is right in any case
                else:
                    continue  # its waiter has gone, and it never began
            batch.append(entry)
        self._running = batch
        return batch

    def _again(self, batch: list[_Entry]) -> None:
        """Back to the front, in their order."""
        for entry in batch:
            entry.tried = True
        self._waiting.extendleft(reversed(batch))

    async def _one_by_one(self, batch: list[_Entry], error: Exception) -> None:
        """A batch that the database refused: the operation at fault is found by trying each alone."""
        if len(batch) == 1:
            _say("error", "ledger.operation_failed", operation=type(batch[0].op).__name__, error=repr(error))
            _fail(batch[0].future, error)
            return
        later: list[_Entry] = []
        for place, entry in enumerate(batch):
            self._running = [*later, *batch[place:]]
            try:
                done = await self._backend.transact([entry.op])
            except LedgerUnavailable:
                later.append(entry)
            except Exception as own:
                _say("error", "ledger.operation_failed", operation=type(entry.op).__name__, error=repr(own))
                _fail(entry.future, own)
            else:
                self._answer(entry, done.results[0])
        self._running = []
        self._again(later)

    def _answer(self, entry: _Entry, result: object) -> None:
        if entry.future.done():
            if isinstance(entry.op, Reserve) and isinstance(result, Reserved):
                self._waiting.append(self._release(entry.op))
        elif isinstance(result, Exception):
            _fail(entry.future, result)
        else:
            entry.future.set_result(result)

    def _release(self, op: Reserve) -> _Entry:
        """Ends a hold that nobody waits for. Where the reserve was never committed, this answers UnknownCharge to
        nobody."""
        return _Entry(Settle(op.charge_id, {}, "released"), self._loop.create_future(), self._loop.time())

    def _tick(self) -> None:
        """Answers what has waited too long. The operations stay: see `_next_batch`."""
        late = self._loop.time() - _ANSWER_S
        for entry in self._running:
            if entry.since < late:
                _fail(entry.future, LedgerUnavailable("no answer in time"))
        for entry in self._waiting:
            if entry.since < late:
                _fail(entry.future, LedgerUnavailable("no answer in time"))
        self._watch = self._loop.call_later(_TICK_S, self._tick)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as seen: a waiter that has gone is no reason for a warning


def _say(level: str, event: str, **facts: object) -> None:
    """A log on a full disk fails, too, and that must not end the batches."""
    with contextlib.suppress(OSError):
        getattr(log, level)(event, **facts)
