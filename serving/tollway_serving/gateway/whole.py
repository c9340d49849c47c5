"""A text model's whole answer on its way to the client: counted, settled, then sent. Called by `text_work`.

What leaves is exactly OpenAI's, whatever the engine adds. The small functions below are the stream's, too (`relay`).
"""

import time
from typing import Any

import orjson

from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.errors import ledger_unavailable
from tollway_serving.gateway.fallback import Opened
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.once import kept
from tollway_serving.gateway.receipts import credits_text
from tollway_serving.gateway.shapes import Shape
from tollway_serving.ledger.ops import LedgerUnavailable, Receipt


async def send_whole(call: Call, opened: Opened, headers: list[Header], shape: Shape) -> None:
    """Settles, then answers."""
    value: dict[str, Any] = opened.peeked
    entry, meter = opened.entry, opened.meter
    choices = value["choices"]
    count_whole(value, meter, shape)
    for index, choice in enumerate(choices):
        shape.tidy(choice)
        choice.setdefault("index", index)
        if choice.setdefault("logprobs", None) is not None:
            shape.shape_logprobs(choice)
        choice.setdefault("finish_reason", "stop")
        for name in choice.keys() - shape.whole_fields:
            del choice[name]
    body = {
        "id": answer_id(value, shape),
        "object": shape.whole_object,
        "created": created(value),
        "model": entry.model_id,
        "choices": choices,
        "usage": shown_usage(meter, value.get("usage")),
    }
    if isinstance(value.get("system_fingerprint"), str):
        body["system_fingerprint"] = value["system_fingerprint"]
    await settle_and_send(call, opened, headers, orjson.dumps(body))


def count_whole(value: dict[str, Any], meter: Meter, shape: Shape) -> None:
    """Counts what one call answered, once."""
    if value.get("counted"):
        return
    value["counted"] = True
    if not meter.usage(value.get("usage")) and not meter.called:
        meter.text(sum(shape.size(choice) for choice in value["choices"]))


async def settle_and_send(call: Call, opened: Opened, headers: list[Header], body: bytes) -> None:
    """Charges a whole answer by its meter; it leaves once the ledger has kept that."""
    charge, meter = opened.charge, opened.meter
    counts = meter.counts(1)
    charge.settle(
        counts,
        "ok",
        http_status=200,
        estimated=meter.estimated,
        duration_ms=call.milliseconds(),
        answer=kept(headers, body) if call.repeat is not None else None,
    )
    try:
        receipt = await charge.receipt()
    except LedgerUnavailable:
        raise ledger_unavailable() from None
    note(call, opened, meter, receipt)
    for unit in ("input_tokens", "output_tokens"):
        if receipt.counts.get(unit, 0) < counts[unit]:
            # This replica was stopped for so long that it was taken for dead: its hold was closed by less than this.
            raise ledger_unavailable()
    await call.respond(200, body, [*headers, (b"x-credits-used", credits_text(receipt.charged_micro))])


def shown_usage(meter: Meter, usage: dict[str, Any] | None) -> dict[str, Any]:
    """The usage that the client sees: whole, consistent, with the details that the model gave."""
    counts = meter.counts(1)
    prompt, output = counts["input_tokens"], counts["output_tokens"]
    answer: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        if usage is not None and isinstance(usage.get(name), dict):
            answer[name] = usage[name]
    return answer


def answer_id(value: dict[str, Any], shape: Shape) -> str:
    found = value.get("id")
    return found if isinstance(found, str) and 0 < len(found) <= 200 else shape.id


def created(value: dict[str, Any]) -> int:
    found = value.get("created")
    return found if type(found) is int and found > 0 else int(time.time())


def note(call: Call, opened: Opened, meter: Meter, receipt: Receipt | None) -> None:
    call.record.update(
        charge_id=opened.charge.id,
        input_tokens=meter.prompt_tokens,
        output_tokens=meter.tokens,
        estimated=meter.estimated,
        credits_micro=receipt.charged_micro if receipt is not None else None,
    )
