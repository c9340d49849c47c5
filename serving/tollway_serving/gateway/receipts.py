"""A charge from its hold to its settlement, and the headers that tell the client of it. Used by `admission`, `relay`.

Settling is synchronous to start and never lost: if the ledger is away, the settlement is sent again in the background
until the hold's deadline (after which the ledger's reaper closes the hold by what it knows).
"""

import asyncio
import time
from collections.abc import Mapping
from functools import partial

import structlog

from tollway_serving.contract.units import Unit, format_credits
from tollway_serving.gateway.call import Header
from tollway_serving.gateway.metrics import Metrics
from tollway_serving.ledger.ops import (
    Answer,
    LedgerUnavailable,
    RateState,
    Receipt,
    Reserve,
    Reserved,
    Settle,
    SettleStatus,
)
from tollway_serving.ledger.port import Ledger

log = structlog.get_logger(__name__)

_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_MAX_RETRYING = 100_000


class Settler:
    """Sends settlements that failed again, for all requests of a replica."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def again(self, op: Settle, until: float) -> None:
        """Keeps trying until `until` (monotonic). Of two settlements of one charge the first to be kept counts."""
        if op.charge_id not in self._waiting and len(self._waiting) < _MAX_RETRYING:
            self._waiting[op.charge_id] = asyncio.create_task(self._retry(op, until), name="settle")

    def release(self, charge_id: str) -> None:
        """Gives a hold back that no Charge was made for."""
        op = Settle(charge_id=charge_id, counts={}, status="released", http_status=499)
        self._ledger.submit(op).add_done_callback(
            lambda done: self.again(op, time.monotonic() + 60) if not done.cancelled() and done.exception() else None
        )

    async def close(self, grace_s: float = 2.0) -> None:
        """Gives what still waits a last chance."""
        if self._waiting:
            _, late = await asyncio.wait(self._waiting.values(), timeout=grace_s)
            for task in late:
                task.cancel()
            log.warning("settlements_left_to_the_reaper", count=len(late))

    async def _retry(self, op: Settle, until: float) -> None:
        try:
            for attempt in range(1_000_000):
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                self._metrics.retried()
                try:
                    await self._ledger.submit(op)
                    return
                except LedgerUnavailable:
                    if time.monotonic() > until:
                        log.warning("settlement_left_to_the_reaper", charge_id=op.charge_id)
                        return
        finally:
            self._waiting.pop(op.charge_id, None)


class Charge:
    """One hold. `settle` may be called from any handler's end, cancelled or not; only the first call counts."""

    __slots__ = ("_ledger", "_metrics", "_settled", "_settler", "_until", "_waiter", "fallback_depth", "fallback_from",
                 "reserve", "reserved")  # fmt: skip

    def __init__(
        self, ledger: Ledger, settler: Settler, metrics: Metrics, reserve: Reserve, reserved: Reserved
    ) -> None:
        self._ledger = ledger
        self._settler = settler
        self._metrics = metrics
        self._until = time.monotonic() + reserve.deadline_ms / 1000
        self._settled: asyncio.Future[Receipt] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.reserve = reserve
        self.reserved = reserved
        self.fallback_from: str | None = None
        self.fallback_depth = 0
        metrics.held(reserve.plan, reserved.held_micro)

    @property
    def id(self) -> str:
        return self.reserved.charge_id

    @property
    def open(self) -> bool:
        return self._settled is None

    def moved(self) -> None:
        """Another hold replaced this one, in the ledger's own transaction: nothing is left to settle."""
        if self.open:
            self._close(_done(Receipt(self.id, 0, 0, {})))

    def settle(
        self,
        counts: Mapping[Unit, int],
        status: SettleStatus,
        *,
        http_status: int,
        error_code: str | None = None,
        estimated: bool = False,
        duration_ms: int = 0,
        first_token_ms: int | None = None,
        answer: Answer | None = None,
    ) -> "asyncio.Future[Receipt]":
        """Submits the settlement; the answer is its receipt, or LedgerUnavailable if it could not be kept in time (it
        is then sent again in the background). `answer` is kept with it, for a client that asks again."""
        if self._settled is not None:
            return self._settled
        op = Settle(
            charge_id=self.id,
            counts=counts,
            status=status,
            http_status=http_status,
            error_code=error_code,
            estimated=estimated,
            duration_ms=duration_ms,
            first_token_ms=first_token_ms,
            fallback_from=self.fallback_from,
            fallback_depth=self.fallback_depth,
            answer=answer,
        )
        future = self._ledger.submit(op)
        self._close(future)
        future.add_done_callback(partial(self._finished, op))
        return future

    def _finished(self, op: Settle, done: "asyncio.Future[Receipt]") -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, LedgerUnavailable):
            self._settler.again(op, self._until)
        elif error is not None:
            log.error("settlement_failed", charge_id=op.charge_id, error=repr(error))
        else:
            receipt = done.result()
            self._metrics.charged(
                self.reserve.plan,
                self.reserve.model_id,
                receipt.charged_micro,
                receipt.overrun_micro,
                op.counts.get("input_tokens", 0),
                op.counts.get("output_tokens", 0),
            )

    def _close(self, future: "asyncio.Future[Receipt]") -> None:
        self._settled = future
        self._metrics.held(self.reserve.plan, -self.reserved.held_micro)

    async def receipt(self) -> Receipt:
        """Waits for the settlement. A caller that is cancelled meanwhile does not cancel it."""
        settled = self._settled
        if settled is None:
            raise RuntimeError("not settled yet")
        if not settled.done():
            self._waiter = settled.get_loop().create_future()
            await self._waiter
        return settled.result()

    def headers(self, model: str) -> list[Header]:
        """What is known before the charge: ids, rates, who answers."""
        headers: list[Header] = [
            (b"x-charge-id", self.id.encode("ascii")),
            (b"x-model-used", model.encode("latin-1", "replace")),
        ]
        if self.fallback_from is not None:
            headers.append((b"x-fallback-from", self.fallback_from.encode("latin-1", "replace")))
            headers.append((b"x-fallback-depth", b"%d" % self.fallback_depth))
        headers.extend(rate_headers(self.reserved.rates))
        return headers


def credits_text(micro: int) -> bytes:
    return format_credits(micro).encode("ascii")


def rate_headers(rates: RateState) -> list[Header]:
    """OpenAI's x-ratelimit-* headers, for the limits that there are."""
    headers: list[Header] = []
    if rates.limit_requests is not None:
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % rates.limit_requests),
            (b"x-ratelimit-remaining-requests", b"%d" % (rates.remaining_requests or 0)),
            (b"x-ratelimit-reset-requests", duration(rates.reset_requests_ms or 0)),
        )
    if rates.limit_tokens is not None:
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % rates.limit_tokens),
            (b"x-ratelimit-remaining-tokens", b"%d" % (rates.remaining_tokens or 0)),
            (b"x-ratelimit-reset-tokens", duration(rates.reset_tokens_ms or 0)),
        )
    return headers


def duration(milliseconds: int) -> bytes:
    """As OpenAI writes them: 20ms, 1.5s, 6m0s."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    seconds, rest = divmod(milliseconds, 1000)
    text = f"{seconds % 60}.{rest:03d}".rstrip("0").rstrip(".") if rest else f"{seconds % 60}"
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return ((f"{hours}h" if hours else "") + (f"{minutes}m" if seconds >= 60 else "") + text + "s").encode("ascii")


def _done(receipt: Receipt) -> "asyncio.Future[Receipt]":
    future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    future.set_result(receipt)
    return future
