"""From a fitted request to a hold: the bound on what it may use, and the reserve. Called by `fallback`."""

import asyncio
from dataclasses import dataclass

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Access
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.ids import uuid7
from tollway_serving.gateway.metrics import Metrics
from tollway_serving.gateway.receipts import Charge, Settler, rate_headers
from tollway_serving.ledger.ops import LedgerUnavailable, Refused, Reserve, Reserved, Stale
from tollway_serving.ledger.port import Ledger

_LONGEST_TOKEN_BYTES = 512  # no tokenizer that we know has a longer one: fewer tokens than this can't be meant
_GRACE_MS = 30_000  # a hold outlives its call by this, for the settlement


class CatalogueMoved(Exception):
    """The ledger knows a newer catalogue that touches this request: load it and decide again."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Estimate:
    """`input_tokens` bounds the prompt from above; `output_tokens` is the most that one choice may have."""

    input_tokens: int
    output_tokens: int
    n: int
    explicit: bool


def estimate_text(
    entry: ModelEntry, *, text_bytes: int, messages: int, has_media: bool, n: int, wanted: int | None, first: bool
) -> Estimate:
    """The bound for text in, text out. ApiError where the request can't fit whatever its tokens are. `first` False (a
    fallback) lowers the wanted maximum to the model's instead of refusing it."""
    bound = entry.token_bound
    most = -(-text_bytes * 10 // bound.tenth_bytes_per_token) + messages * bound.per_message + bound.fixed
    least = -(-text_bytes // _LONGEST_TOKEN_BYTES) + messages
    if has_media:
        most = entry.context_tokens  # a picture's tokens are the model's affair
    if least >= entry.context_tokens:
        raise ApiError(
            "context_length_exceeded",
            f"This model's maximum context length is {entry.context_tokens} tokens. "
            f"Your messages have at least {least} tokens. Please reduce their length.",
            param="messages",
        )
    limit = min(entry.output_tokens, entry.context_tokens)
    if wanted is not None and wanted > limit:
        if first:
            raise ApiError(
                "invalid_value",
                f"The maximum is too large: {wanted}. "
                f"This model supports at most {limit} completion tokens, whereas you asked for {wanted}.",
                param="max_completion_tokens",
            )
        wanted = limit
    if wanted is not None and least + wanted > entry.context_tokens:
        raise ApiError(
            "context_length_exceeded",
            f"This model's maximum context length is {entry.context_tokens} tokens. However, you asked for at least "
            f"{least + wanted} tokens ({least} in the messages, {wanted} in the completion).",
            param="messages",
        )
    return Estimate(
        input_tokens=min(most, entry.context_tokens),
        output_tokens=wanted if wanted is not None else min(entry.default_output_tokens, limit),
        n=n,
        explicit=wanted is not None,
    )


class Admission:
    """Reserves for all requests of a replica."""

    def __init__(self, ledger: Ledger, settler: Settler, metrics: Metrics, owner: str) -> None:
        self._ledger = ledger
        self._settler = settler
        self._metrics = metrics
        self._owner = owner

    async def reserve(
        self,
        call: Call,
        access: Access,
        entry: ModelEntry,
        endpoint: Endpoint,
        estimate: Estimate,
        revision: int,
        replaces: Charge | None,
    ) -> Charge:
        """Holds all that `estimate` may need. ApiError: refused, or no ledger; CatalogueMoved: decide again."""
        op = Reserve(
            charge_id=uuid7(),
            request_id=call.request_id,
            owner=self._owner,
            key_sha256=access.key.sha256,
            key_id=access.key.key_id,
            account=access.key.account,
            plan=access.plan.name,
            endpoint=endpoint,
            model_id=entry.model_id,
            catalogue_revision=revision,
            account_limits=access.plan.limits,
            key_limits=access.key.limits,
            prompt={"requests": 1, "input_tokens": estimate.input_tokens},
            prices=entry.prices,
            output_tokens=estimate.output_tokens * estimate.n,
            output_minimum=estimate.n,
            explicit=estimate.explicit,
            deadline_ms=entry.timeouts.total_ms + _GRACE_MS,
            replaces=replaces.id if replaces is not None else None,
        )
        future = self._ledger.submit(op)
        try:
            answer = await future
        except LedgerUnavailable:
            raise ledger_unavailable() from None
        except asyncio.CancelledError:
            # Cancelled between the ledger's answer and our turn: the store can't know that nobody took it.
            if future.done() and not future.cancelled() and isinstance(future.result(), Reserved):
                self._settler.release(op.charge_id)
            raise
        if isinstance(answer, Stale):
            raise CatalogueMoved(answer.revision)
        if isinstance(answer, Refused):
            self._metrics.limit_hit(access.plan.name, answer.limit or answer.code)
            raise ApiError(
                answer.code,
                answer.message,
                retry_after_s=answer.retry_after_s,
                headers=tuple(rate_headers(answer.rates)),
            )
        if replaces is not None:
            replaces.moved()
        return Charge(self._ledger, self._settler, self._metrics, op, answer)
