"""From a fitted request to a hold: the bound on what it may use, and the reserve. Called by `fallback`."""

import asyncio
from collections.abc import Sequence

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.catalogue import Access
from tollway_serving.gateway.errors import ApiError, ledger_unavailable
from tollway_serving.gateway.ids import uuid7
from tollway_serving.gateway.metrics import Metrics
from tollway_serving.gateway.receipts import Charge, Settler, rate_headers
from tollway_serving.ledger.ops import LedgerUnavailable, Refused, Reserve, Reserved, Stale
from tollway_serving.ledger.port import Ledger
from tollway_serving.ledger.value import value

_LONGEST_TOKEN_BYTES = 512  # no tokenizer that we know has a longer one: fewer tokens than this can't be meant
_GRACE_MS = 30_000  # a hold outlives its call by this, for the settlement


class CatalogueMoved(Exception):
    """The ledger knows a newer catalogue that touches this request: load it and decide again."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


@value
class Prompt:
    """One prompt, as far as it is known before a model counts its tokens. `param` names it in errors."""

    text_bytes: int = 0  # UTF-8
    tokens: int = 0  # that the client gave as tokens
    messages: int = 0
    has_media: bool = False
    param: str = "messages"

    def least(self) -> int:
        return self.tokens + -(-self.text_bytes // _LONGEST_TOKEN_BYTES) + self.messages

    def most(self, entry: ModelEntry) -> int:
        if self.has_media:
            return entry.context_tokens  # a picture's tokens are the model's affair
        bound = entry.token_bound
        text = -(-self.text_bytes * 10 // bound.tenth_bytes_per_token)
        return min(self.tokens + text + self.messages * bound.per_message + bound.fixed, entry.context_tokens)


@value
class Estimate:
    """`input_tokens` bounds the prompt from above; `output_tokens` is the most that one choice may have."""

    input_tokens: int
    output_tokens: int
    n: int
    explicit: bool


def estimate_prompts(entry: ModelEntry, prompts: Sequence[Prompt], room: int = 0) -> int:
    """The bound on all prompts' tokens. ApiError where one can't fit beside `room` tokens of answer, whatever its own
    tokens are."""
    for prompt in prompts:
        least = prompt.least()
        if least >= entry.context_tokens:
            raise ApiError(
                "context_length_exceeded",
                f"This model's maximum context length is {entry.context_tokens} tokens. "
                f"There are at least {least} tokens in your {prompt.param}. Please reduce the length.",
                param=prompt.param,
            )
        if least + room > entry.context_tokens:
            raise ApiError(
                "context_length_exceeded",
                f"This model's maximum context length is {entry.context_tokens} tokens. However, you asked for at "
                f"least {least + room} tokens ({least} in the {prompt.param}, {room} in the completion).",
                param=prompt.param,
            )
    return prompts[0].most(entry) if len(prompts) == 1 else sum(prompt.most(entry) for prompt in prompts)


def estimate_text(
    entry: ModelEntry,
    prompts: Sequence[Prompt],
    *,
    n: int,
    wanted: int | None,
    maximum: str,
    first: bool,
    default: int | None = None,
) -> Estimate:
    """The bound for text in, text out. `wanted` tokens are the most that one of the `n` choices may have, `maximum` is
    the parameter that says so; without it `default` or the model's own holds. `first` False (a fallback) lowers what
    is wanted to the model's limit instead of refusing it."""
    limit = min(entry.output_tokens, entry.context_tokens)
    if wanted is not None and wanted > limit:
        estimate_prompts(entry, prompts)
        if first:
            raise ApiError(
                "invalid_value",
                f"The maximum is too large: {wanted}. "
                f"This model supports at most {limit} completion tokens, whereas you asked for {wanted}.",
                param=maximum,
            )
        wanted = limit
    return Estimate(
        input_tokens=estimate_prompts(entry, prompts, wanted or 0),
        output_tokens=wanted if wanted is not None else min(default or entry.default_output_tokens, limit),
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
        covered: int,
    ) -> Charge:
        """Holds all that `estimate` may need. ApiError: refused, or no ledger; CatalogueMoved: decide again."""
        op = Reserve(
            charge_id=uuid7(),
            request_id=call.request_id,
            owner=self._owner,
            key_sha256=access.key.sha256,
            key_id=access.key.key_id,
            key_uid=access.key.uid,
            repeat=call.repeat,
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
            covered=covered,
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
