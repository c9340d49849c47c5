"""A POST with an Idempotency-Key is answered and charged once, however often its client sends it. Called by `handle`.

The ledger keeps the record (ledger/idempotency.py). An answer that comes whole is finished even if its client leaves:
it will ask again, and must not pay for a second one.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from tollway_serving.contract.units import format_credits
from tollway_serving.gateway.call import IDEMPOTENCY_KEY, Call, Header
from tollway_serving.gateway.catalogue import Access
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.ids import uuid7
from tollway_serving.ledger.ops import Answer, Begin, Forget, Kept, LedgerUnavailable, NotAgain, Repeat

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

MAX_KEPT = 1024 * 1024
_NAME = re.compile(rb"[\x21-\x7e]{1,255}")
_NOT_KEPT = "x-ratelimit-"  # tells of the moment, not of the answer
_TEXTS = {
    "idempotency_in_progress": "A request with this Idempotency-Key is being answered. Please retry.",
    "idempotency_mismatch": "This Idempotency-Key was used with another body. Use a new one for a new request.",
    "idempotency_not_replayable": "The request with this Idempotency-Key was answered and charged; a stream, or an "
    "answer of more than 1 MiB, can't be given again.",
}


async def once(
    gateway: "Gateway", call: Call, access: Access, streamed: bool, answer: Callable[[], Awaitable[None]]
) -> None:
    """Runs `answer` if nobody has sent this POST yet; else answers what became of it, or ApiError."""
    name = call.header(IDEMPOTENCY_KEY) or b""
    if not _NAME.fullmatch(name):
        raise ApiError("invalid_value", "The header Idempotency-Key has 1 to 255 visible ASCII characters.")
    repeat = Repeat(call.route, name.decode("ascii"), uuid7(), streamed)
    forget = Forget(access.key.account, repeat.route, repeat.name, repeat.attempt)
    try:
        begun = await gateway.ledger.submit(
            Begin(forget.account, repeat.route, repeat.name, repeat.attempt, call.body_sha256, gateway.owner)
        )
    except BaseException as error:
        gateway.ledger.submit(forget)
        if isinstance(error, LedgerUnavailable):
            raise ledger_unavailable() from None
        raise
    if isinstance(begun, NotAgain):
        raise ApiError(begun.code, _TEXTS[begun.code])
    if isinstance(begun, Kept):
        await _replay(call, begun)
        return
    call.repeat = repeat

    async def run() -> None:
        try:
            await answer()
        finally:
            # A record without a hold or a charge must not stand in the way of the next try.
            gateway.ledger.submit(forget)

    if streamed:
        call.watch()
        await run()
    else:
        await asyncio.shield(gateway.keep(run()))


def kept(headers: Iterable[Header], body: bytes) -> Answer | None:
    """What the ledger is to keep of an answer; None: too much."""
    if len(body) > MAX_KEPT:
        return None
    texts = ((name.decode("ascii"), value.decode("latin-1")) for name, value in headers)
    return Answer(tuple((name, value) for name, value in texts if not name.startswith(_NOT_KEPT)), body)


async def _replay(call: Call, found: Kept) -> None:
    call.record["replayed"] = True
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in found.answer.headers]
    headers += [
        (b"x-credits-used", format_credits(found.charged_micro).encode("ascii")),
        (b"idempotent-replayed", b"true"),
    ]
    await call.respond(200, found.answer.body, headers)
