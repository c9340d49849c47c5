"""Which model answers: the one asked for, or the first of its fallbacks that may and can. Called by model routes.

A fallback is taken only before an answer's first byte: an attempt holds credits, opens the call and looks at the
answer's beginning; only then is a model chosen, and the client's headers can go out (a heartbeat's bytes are of no
answer). The hold moves with the attempt.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson
import structlog

from tollway_serving.contract.catalogue import Endpoint, Fallback, FallbackReason, ModelEntry
from tollway_serving.gateway.admission import Admission, CatalogueMoved, Estimate
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Access, Catalogue, Model
from tollway_serving.gateway.errors import ApiError, internal_error
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.limit import Limit
from tollway_serving.gateway.metering import FIRST_STEP, Coverage, Meter
from tollway_serving.gateway.metrics import Metrics
from tollway_serving.gateway.parameters import Fitted
from tollway_serving.gateway.receipts import Charge
from tollway_serving.gateway.upstream import Answer, Upstream, UpstreamFailed, read_all
from tollway_serving.gateway.upstream_errors import (
    Failed,
    broken,
    overloaded,
    refused,
    starting,
    timed_out,
    unavailable,
)
from tollway_serving.ledger.ops import SettleStatus
from tollway_serving.ledger.port import Ledger

log = structlog.get_logger(__name__)

_MAX_ERROR_BODY = 64 * 1024


class Work(Protocol):
    """What a route wants of a model."""

    endpoint: Endpoint
    path: str  # behind the target's URL
    prompt: str  # the parameter that has the prompt, for errors
    streamed: bool  # what is generated goes out at once: the ledger has to know of it before
    calls: int  # that one streamed answer takes, as `payload` found
    links: tuple[tuple[str, str], ...]  # of the request as it was fitted last: what our own models get inline

    def fit(self, model: Model) -> Fitted: ...

    def estimate(self, entry: ModelEntry, first: bool) -> Estimate: ...

    def payload(self, fitted: Fitted, entry: ModelEntry, granted: int) -> dict[str, Any]:
        """The request's body; `granted` tokens may be generated, all choices together."""

    async def fetch(self, fetcher: Fetcher) -> None:
        """Gets what the links point to, for `payload`. ApiError if that can't be had."""

    def patience_ms(self, entry: ModelEntry) -> int:
        """How long `peek` may take."""

    async def peek(self, entry: ModelEntry, answer: Answer) -> Any:
        """Reads the answer's beginning (or all of it). UpstreamFailed, Failed or ApiError if it is none."""

    async def complete(self, entry: ModelEntry, answer: Answer, peeked: Any, meter: Meter) -> Any:
        """Reads the rest of an answer that is not streamed; what it answers takes the place of `peeked`."""

    def following(self, entry: ModelEntry) -> Iterable[dict[str, Any]]:
        """Bodies of further calls that one answer needs, one after the other; after `complete`."""

    async def add(self, entry: ModelEntry, answer: Answer, peeked: Any, more: Any, meter: Meter) -> None:
        """Takes what a following call answered (and `peek` said of it) into the first one's answer."""

    def blame(self, found: Failed | ApiError) -> Failed | ApiError:
        """A model's refusal as the client can understand it."""


class Gate:
    """Calls in progress by model, in this replica."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def enter(self, entry: ModelEntry) -> bool:
        count = self._counts.get(entry.model_id, 0)
        if count >= entry.queued_requests:
            return False
        self._counts[entry.model_id] = count + 1
        return True

    def leave(self, entry: ModelEntry) -> None:
        count = self._counts.get(entry.model_id, 0) - 1
        if count > 0:
            self._counts[entry.model_id] = count
        else:
            self._counts.pop(entry.model_id, None)


class Opened:
    """A model that began to answer. `close` must be called once, whatever happens."""

    __slots__ = ("_gate", "again", "answer", "charge", "coverage", "deadline", "entry", "ignored", "meter", "peeked")

    def __init__(
        self, gate: Gate, entry: ModelEntry, charge: Charge, estimate: Estimate, ignored: tuple[str, ...]
    ) -> None:
        self._gate = gate
        self.entry = entry
        self.charge = charge
        self.meter = Meter(estimate, entry.token_bound.tenth_bytes_per_token)
        self.ignored = ignored
        self.deadline = time.monotonic() + entry.timeouts.total_ms / 1000
        self.answer: Answer | None = None
        self.coverage: Coverage | None = None
        self.peeked: Any = None
        # Opens the next call that a streamed answer needs, and answers whether there was one. ApiError if it fails.
        self.again: Callable[[], Awaitable[bool]] | None = None

    def close_answer(self) -> None:
        """Nothing more is read: the model stops if it has not ended."""
        if self.answer is not None:
            self.answer.close()
            self.answer = None

    def close(self) -> None:
        self.close_answer()
        self._gate.leave(self.entry)


@dataclass(slots=True)
class _State:
    """Of one request across its attempts."""

    charge: Charge | None = None
    meter: Meter | None = None
    tried: int = 0


class Fallbacks:
    """Chooses for all requests of a replica."""

    def __init__(
        self,
        catalogue: Catalogue,
        admission: Admission,
        upstream: Upstream,
        fetcher: Fetcher,
        ledger: Ledger,
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._fetcher = fetcher
        self._admission = admission
        self._upstream = upstream
        self._ledger = ledger
        self._metrics = metrics
        self._gate = Gate()

    async def open(self, call: Call, access: Access, model: Model, work: Work) -> Opened:
        """The first answer that began. ApiError if there is none; whatever was held is settled then. CatalogueMoved
        before anything was held: load and call again."""
        state = _State()
        try:
            return await self._open(call, access, model, work, state)
        except ApiError as error:
            self._end(call, state, error.status, error.code)
            raise
        except CatalogueMoved:
            self._end(call, state, 503, None, "released")
            raise
        except asyncio.CancelledError:
            self._end(call, state, 499, None, "cancelled")
            raise
        except BaseException:
            self._end(call, state, 500, "internal_error")
            raise

    def _end(
        self, call: Call, state: _State, http_status: int, code: str | None, status: SettleStatus = "error"
    ) -> None:
        if state.charge is None or not state.charge.open:
            return
        # Nobody pays for what nobody got; but who leaves pays for what was done until then.
        meter = state.meter if status == "cancelled" else None
        generated = meter if meter and (meter.tokens or meter.prompt_tokens) else None
        state.charge.settle(
            generated.counts(1) if generated else {},
            status,
            # A heartbeat may have begun the answer: then this is what the client saw.
            http_status=call.status if call.began and status == "error" else http_status,
            error_code=code,
            estimated=generated.estimated if generated else False,
            duration_ms=call.milliseconds(),
        )

    async def _open(self, call: Call, access: Access, first: Model, work: Work, state: _State) -> Opened:
        try:
            return await self._attempt(call, access, first, work, state, work.fit(first))
        except Failed as failed:
            error, reasons = failed.error, failed.reasons
            self._note(call, first.entry, failed)
        saving = reasons == ("CreditsLow",)
        for fallback in first.entry.fallbacks:
            model = self._usable(access, fallback, reasons, work)
            if model is None:
                continue
            try:
                fitted = work.fit(model)
                state.tried += 1
                reason = next(reason for reason in reasons if reason in fallback.when)
                self._metrics.fallback(first.entry.model_id, model.entry.model_id, reason)
                opened = await self._attempt(call, access, model, work, state, fitted, asked=first.entry.model_id)
            except Failed as failed:
                reasons = failed.reasons
                self._note(call, model.entry, failed)
            except ApiError as refusal:
                # Not this one then: no credits for it, or it can't do what was asked.
                log.info("fallback_refused", request_id=call.request_id, model=model.entry.model_id, code=refusal.code)
            else:
                return opened
        if saving:
            return await self._attempt(call, access, first, work, state, work.fit(first), save=False)
        raise error

    def _usable(
        self, access: Access, fallback: Fallback, reasons: tuple[FallbackReason, ...], work: Work
    ) -> Model | None:
        if not any(reason in fallback.when for reason in reasons):
            return None
        model = self._catalogue.model(access, fallback.model_id)
        return model if model is not None and work.endpoint in model.entry.endpoints else None

    def _note(self, call: Call, entry: ModelEntry, failed: Failed) -> None:
        log.warning(
            "model_failed",
            request_id=call.request_id,
            model=entry.model_id,
            code=failed.error.code,
            detail=str(failed),
        )

    async def _attempt(
        self,
        call: Call,
        access: Access,
        model: Model,
        work: Work,
        state: _State,
        fitted: Fitted,
        asked: str | None = None,
        save: bool = True,
    ) -> Opened:
        entry = model.entry
        if entry.state == "Unavailable":
            raise unavailable(entry, "state Unavailable")
        if entry.state != "Ready" and entry.cold_start == "Refuse":
            raise starting(entry, f"state {entry.state}")
        try:
            estimate = work.estimate(entry, asked is None)
        except ApiError as error:
            if error.code == "context_length_exceeded":
                raise Failed(("ContextTooLong",), error, "bound") from None
            raise
        if not self._gate.enter(entry):
            raise overloaded(entry, "queuedRequests reached")
        opened: Opened | None = None
        try:
            charge = await self._admission.reserve(
                call,
                access,
                entry,
                work.endpoint,
                estimate,
                self._catalogue.revision,
                state.charge,
                FIRST_STEP if work.streamed else 0,
            )
            charge.fallback_from, charge.fallback_depth = asked, state.tried
            state.charge = charge
            opened = Opened(self._gate, entry, charge, estimate, fitted.ignored)
            state.meter = opened.meter
            if asked is None and save and self._saves(access, model, charge):
                raise Failed(("CreditsLow",), internal_error(), "credits below the plan's low watermark")
            await self._begin(call, work, opened, fitted)
        except BaseException:
            if opened is not None:
                opened.close()
            else:
                self._gate.leave(entry)
            raise
        return opened

    async def _begin(self, call: Call, work: Work, opened: Opened, fitted: Fitted) -> None:
        entry, charge = opened.entry, opened.charge
        if work.streamed:
            opened.coverage = Coverage(self._ledger, charge.id, charge.reserved.output_tokens)
        if work.links:
            await work.fetch(self._fetcher)
        body = work.payload(fitted, entry, charge.reserved.output_tokens)
        try:
            with Limit(self._patience_s(work, entry)) as limit:
                answer, opened.peeked = await self._post(call, work, opened, body)
                if work.streamed:
                    if work.calls > 1:
                        opened.again = partial(self._again, call, work, opened, iter(work.following(entry)))
                else:
                    limit.move(opened.deadline)
                    opened.peeked = await work.complete(entry, answer, opened.peeked, opened.meter)
                    for body in work.following(entry):
                        opened.close_answer()
                        with Limit(self._patience_s(work, entry)):
                            following, more = await self._post(call, work, opened, body)
                        await work.add(entry, following, opened.peeked, more, opened.meter)
        except TimeoutError:
            raise timed_out(entry, "no answer in time") from None
        except UpstreamFailed as failure:
            raise broken(entry, failure) from None

    async def _again(self, call: Call, work: Work, opened: Opened, bodies: Iterator[dict[str, Any]]) -> bool:
        body = next(bodies, None)
        if body is None:
            return False
        opened.close_answer()
        opened.meter.next_call()
        try:
            with Limit(self._patience_s(work, opened.entry)):
                _, opened.peeked = await self._post(call, work, opened, body)
        except TimeoutError:
            raise timed_out(opened.entry, "no answer in time").error from None
        except UpstreamFailed as failure:
            raise broken(opened.entry, failure).error from None
        except Failed as failed:
            raise failed.error from None
        return True

    @staticmethod
    def _patience_s(work: Work, entry: ModelEntry) -> float:
        """How long an answer's beginning may take."""
        return min(work.patience_ms(entry), entry.timeouts.total_ms) / 1000

    async def _post(self, call: Call, work: Work, opened: Opened, body: dict[str, Any]) -> tuple[Answer, Any]:
        entry = opened.entry
        answer = await self._upstream.post(entry.target, work.path, orjson.dumps(body), call.request_id, entry.timeouts)
        opened.answer = answer
        if answer.status != 200:
            raise work.blame(refused(entry, answer, await read_all(answer, _MAX_ERROR_BODY), work.prompt))
        if answer.ignored and entry.target.internal:
            opened.ignored = (*opened.ignored, *answer.ignored)
        return answer, await work.peek(entry, answer)

    def _saves(self, access: Access, model: Model, charge: Charge) -> bool:
        """Whether a cheaper model should answer, because the account's credits are low."""
        left, watermark = charge.reserved.credits_left_micro, access.plan.low_watermark_micro
        if watermark is None or left is None or left + charge.reserved.held_micro >= watermark:
            return False
        return any(self._catalogue.model(access, f.model_id) is not None for f in _when(model.entry, "CreditsLow"))


def _when(entry: ModelEntry, reason: FallbackReason) -> Iterator[Fallback]:
    return (fallback for fallback in entry.fallbacks if reason in fallback.when)
