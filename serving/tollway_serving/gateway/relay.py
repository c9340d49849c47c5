"""A text model's stream on its way to the client: counted as it goes, covered before it leaves, settled before its end.

Called by `text_work` once `fallback` has opened an answer. Usage is taken out of every chunk, ids and model names are
ours, so that what leaves is exactly OpenAI's whatever the engine adds. Most chunks are like the one before them and are
sent on as they come in, without being parsed (`template`) and without waking up the request's task (`upstream.Sink`).
"""

import asyncio
import time
from functools import partial
from typing import Any

import orjson
import structlog

from tollway_serving.contract.units import MICRO
from tollway_serving.gateway import sse
from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.errors import ApiError, internal_error, ledger_unavailable
from tollway_serving.gateway.fallback import Opened
from tollway_serving.gateway.limit import Limit
from tollway_serving.gateway.metering import Coverage
from tollway_serving.gateway.peek import Peeked, parse_chunk
from tollway_serving.gateway.receipts import credits_text
from tollway_serving.gateway.shapes import Shape
from tollway_serving.gateway.stops import Stopper
from tollway_serving.gateway.template import Template, learn, place
from tollway_serving.gateway.upstream import UpstreamFailed
from tollway_serving.gateway.upstream_errors import Failed, error_event
from tollway_serving.gateway.whole import answer_id, created, note, shown_usage
from tollway_serving.ledger.ops import LedgerUnavailable, Receipt

log = structlog.get_logger(__name__)

_GATHER_S = 0.002  # chunks that come faster than this wait for each other: a read costs more than what it brings
_LESSONS = 4  # a stream whose chunks go on differing is parsed


class Stream:
    """One streamed answer, from its head to `[DONE]`."""

    def __init__(self, call: Call, opened: Opened, headers: list[Header], include_usage: bool, shape: Shape) -> None:
        self._call = call
        self._shape = shape
        self._opened = opened
        self._headers = headers
        self._include_usage = include_usage
        self._meter = opened.meter
        self._usage: dict[str, Any] | None = None  # the last whole usage object that the model sent
        self._finished: set[int] = set()
        self._seen: set[int] = set()
        self._done = False
        self._calls, self._number = 1, 0
        self._stopper: Stopper | None = None
        self._first_ms = call.milliseconds()
        first: dict[str, Any] = opened.peeked.first
        head = {
            "id": answer_id(first, shape),
            "object": shape.chunk_object,
            "created": created(first),
            "model": opened.entry.model_id,
        }
        if isinstance(first.get("system_fingerprint"), str):
            head["system_fingerprint"] = first["system_fingerprint"]
        self._before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        self._after = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._out: list[bytes] = []  # counted, and not sent yet
        self._template: Template | None = None
        self._lessons = _LESSONS
        self._before_text = self._after_text = self._seam = b""  # what leaves around and between texts like its own

    def in_its_stead(self, calls: int, stopper: Stopper | None) -> None:
        """The answer takes several calls of the model, or ends at texts that the model does not know of."""
        self._calls = calls
        self._stopper = stopper
        self._lessons = 0  # each chunk is changed

    async def run(self) -> None:
        """Sends everything. ApiError: the settlement is made, and the client is still to be told."""
        opened, call = self._opened, self._call
        error: ApiError | None = None
        try:
            with Limit(opened.deadline - time.monotonic()):
                await self._head()
                error = await self._body()
                while error is None and await self._again():
                    error = await self._body()
        except TimeoutError:
            error = ApiError("timeout", "The answer took too long.")
        except ApiError as raised:
            error = raised
        except asyncio.CancelledError:
            self._settle("cancelled", 499, None)
            self._note(None)
            raise
        except Exception:
            log.exception("stream_failed", request_id=call.request_id)
            error = internal_error()
        await self._end(error)

    async def _head(self) -> None:
        reserved = credits_text(self._opened.charge.reserved.held_micro)
        await self._call.stream([(b"x-credits-reserved", reserved), *self._headers])

    async def _body(self) -> ApiError | None:
        """Relays until the model's end; the error that ended it, if one did."""
        opened = self._opened
        answer, coverage, peeked = opened.answer, opened.coverage, opened.peeked
        if answer is None or coverage is None or not isinstance(peeked, Peeked):
            raise RuntimeError("no open stream")
        answer.limit_silence(opened.entry.timeouts.idle_ms / 1000)
        reader, events = peeked.reader, peeked.events
        first: dict[str, Any] | None = peeked.first
        sink = partial(self._pass, reader, coverage)
        while True:
            error = self._read(events, first)
            if self._out:
                if not coverage.covers(self._meter):
                    await coverage.wait(self._meter)
                await self._call.send(b"".join(self._out))
                self._out.clear()
            if error is not None or self._done:
                return error
            first = None
            try:
                data = await answer.pump(sink)
                events = reader.feed(data) if data else []
            except UpstreamFailed as failure:
                log.warning("stream_broken", request_id=self._call.request_id, detail=str(failure))
                return self._broken(failure)
            except sse.TooLong:
                return self._cut()
            await self._call.sent()
            if data is None:
                # Without [DONE] it is an end only if every choice that began has its reason to finish.
                return None if self._seen and self._seen == self._finished else self._cut()

    def _pass(self, reader: sse.EventReader, coverage: Coverage, data: bytes) -> bytes | None:
        """`upstream.Sink`: sends on what can go at once, chunks like the template that the ledger is sure of. What it
        leaves is to be read; nothing (b""): something counted is still to be sent, in `_out` or half-way out."""
        template = self._template
        if template is None or not reader.between:
            return data
        if (one := template.one(data)) is not None:
            out = self._before_text + self._counted(*one) + self._after_text
        else:
            if (events := reader.whole(data)) is None:
                return data
            texts, usages = template.run(events)
            out = self._filled(texts, usages) if texts else b""
            if len(texts) < len(events):
                if out:
                    self._out.append(out)
                return b"".join(map(sse.event, events[len(texts) :]))
        if not coverage.covers(self._meter):
            self._out.append(out)
            return b""
        call = self._call
        before = call.sent_at or 0.0
        if not call.send_now(out):
            return b""
        if call.sent_at is not None and call.sent_at - before < _GATHER_S and self._opened.answer is not None:
            self._opened.answer.pause(_GATHER_S)
        return None

    def _read(self, events: list[bytes], first: dict[str, Any] | None) -> ApiError | None:
        """Adds to what goes out. `first` is the first event, if it was parsed already."""
        at = 0
        while at < len(events):
            if self._template is not None:
                texts, usages = self._template.run(events, at)
                if texts:
                    self._out.append(self._filled(texts, usages))
                    at += len(texts)
                    continue
            error = self._parse(events[at], first)
            if error is not None or self._done:
                return error
            first = None
            at += 1
        return None

    def _parse(self, payload: bytes, first: dict[str, Any] | None) -> ApiError | None:
        if payload == sse.DONE:
            self._done = True
            return None
        chunk = first or parse_chunk(payload, self._shape)
        if chunk is None:
            log.warning("garbage_in_stream", request_id=self._call.request_id)
            return self._cut()
        if chunk.get("error"):
            return _in_stream(error_event(self._opened.entry, chunk["error"], self._shape.prompt))
        if choices := self._count(chunk):
            sent = self._before + orjson.dumps(choices) + self._after
            self._out.append(sent)
            if self._lessons and len(choices) == 1:
                self._learn(payload, choices[0], chunk.get("usage"), sent)
        return None

    def _filled(self, texts: list[bytes], usages: list[dict[str, Any]]) -> bytes:
        """Counts chunks like the template, by the usage of each where they have one; answers what goes out for them."""
        if usages:
            for text, usage in zip(texts, usages, strict=True):
                self._counted(text, usage)
        else:
            self._meter.text(sum(map(len, texts)))
        return self._before_text + self._seam.join(texts) + self._after_text

    def _counted(self, text: bytes, usage: dict[str, Any] | None) -> bytes:
        """The same for one; answers its text."""
        if usage is not None and self._meter.usage(usage):
            self._usage = usage
        else:
            self._meter.text(len(text))
        return text

    def _count(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Takes the usage out of a chunk and answers its choices, in OpenAI's fields only."""
        choices: list[dict[str, Any]] = chunk.get("choices") or []
        usage = chunk.get("usage")
        if usage is not None and self._meter.usage(usage):
            self._usage = usage
        else:
            for choice in choices:
                self._meter.text(self._shape.size(choice))
        shape = self._shape
        for choice in choices:
            for name in choice.keys() - shape.chunk_fields:
                del choice[name]
            if choice.get("logprobs") is not None:
                shape.shape_logprobs(choice)
            for name in shape.chunk_nulls:
                choice.setdefault(name, None)
            index = choice.setdefault("index", 0)
            if type(index) is not int:
                index = choice["index"] = 0
            self._seen.add(index)
            if choice.setdefault("finish_reason", None) is not None:
                self._finished.add(index)
        return choices if self._calls == 1 and self._stopper is None else self._changed(choices)

    def _learn(self, payload: bytes, choice: dict[str, Any], usage: Any, sent: bytes) -> None:
        """Takes a chunk as the template of those that follow, if they can be like it: `sent` is what left for it."""
        said = self._shape.said(choice)
        if said is None or choice["finish_reason"] is not None or choice.get("logprobs") is not None:
            return
        self._lessons -= 1
        name, text = said
        if self._shape.size(choice) != len(text.encode()):
            return  # something else counts, too
        begin = place(sent, name, text)
        if begin is not None and (template := learn(payload, name, text, usage)) is not None:
            self._template = template
            self._before_text, self._after_text = sent[:begin], sent[begin + len(text.encode()) :]
            self._seam = self._after_text + self._before_text

    def _changed(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Up to a stop sequence, and with the index that the choice has among those of all calls."""
        if self._stopper is not None:
            choices = self._stopper.feed(choices)
            self._done = self._stopper.ended
        for choice in choices:
            choice["index"] = choice["index"] * self._calls + self._number
        return choices

    async def _again(self) -> bool:
        """Whether another call was opened for the next choices."""
        again = self._opened.again
        if again is None or not await again():
            return False
        self._number += 1
        self._done = False
        self._seen.clear()
        self._finished.clear()
        if self._stopper is not None:
            self._stopper = self._stopper.again()
        return True

    def _cut(self) -> ApiError:
        return ApiError("model_unavailable", "The model stopped before its answer was complete.")

    def _broken(self, failure: UpstreamFailed) -> ApiError:
        if failure.trouble == "timeout":
            return ApiError("timeout", "The model was silent for too long.")
        return self._cut()

    def _settle(self, status: Any, http_status: int, error: ApiError | None) -> None:
        meter = self._meter
        self._opened.charge.settle(
            meter.counts(0 if status == "error" else 1),
            status,
            http_status=http_status,
            error_code=error.code if error is not None else None,
            estimated=meter.estimated,
            duration_ms=self._call.milliseconds(),
            first_token_ms=self._first_ms,
        )

    async def _end(self, error: ApiError | None) -> None:
        """The settlement is committed, then the last bytes go out; an error's are the caller's."""
        call, opened = self._call, self._opened
        if error is not None:
            opened.close_answer()
        self._settle("error" if error else "ok", 200, error)
        try:
            receipt = await opened.charge.receipt()
        except LedgerUnavailable:
            receipt = None
            error = error or ledger_unavailable()
        except Exception:
            # `receipts` logged it; what has been sent can't be taken back, but it must not look complete.
            receipt = None
            error = internal_error()
        self._note(receipt)
        if error is not None:
            raise error
        assert receipt is not None  # noqa: S101  # no error means that it was kept
        await call.end(self._tail(receipt) + sse.event(sse.DONE))

    def _tail(self, receipt: Receipt) -> bytes:
        """The usage chunk for those who asked for one, else a comment with the charge."""
        if not self._include_usage:
            charge = credits_text(receipt.charged_micro).decode()
            return sse.comment(f"credits_used={charge} charge_id={receipt.charge_id}")
        usage = shown_usage(self._meter, self._usage)
        usage["credits_used"] = receipt.charged_micro / MICRO
        return self._before + b'[],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def _note(self, receipt: Receipt | None) -> None:
        note(self._call, self._opened, self._meter, receipt)
        self._call.record["first_token_ms"] = self._first_ms


def _in_stream(found: Failed | ApiError) -> ApiError:
    return found.error if isinstance(found, Failed) else found
