"""The operations on the ledger and their answers: what the gateway submits and what `admit` decides.

Plain frozen values without behaviour, shared by the pure part (`admit`), the stores and the gateway. Counts are in
contract.units' units, money in micro-credits, times in whole milliseconds unless a name says otherwise.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from tollway_serving.contract.catalogue import Endpoint, Limits
from tollway_serving.contract.units import Unit
from tollway_serving.ledger.value import value

RefusalCode = Literal[
    "rate_limit_exceeded",  # requests, tokens, concurrency, a quota, a trial's requests
    "insufficient_quota",  # credits used up
    "credits_held",  # enough credits, but held by calls in flight
    "invalid_api_key",  # the key was revoked or suspended since the catalogue was loaded
    "expired_api_key",
]
SettleStatus = Literal["ok", "error", "cancelled", "released"]


@value
class Repeat:
    """Which POST this is to its client: the same route and name (Idempotency-Key) again is the same POST."""

    route: str
    name: str
    attempt: str  # unique to this try
    streamed: bool


@value
class Answer:
    """What is kept of a whole answer (always a 200)."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


@value
class Begin:
    """Open the record of a POST with an Idempotency-Key. Whoever submits it submits a Forget in the end."""

    account: str
    route: str
    name: str
    attempt: str
    body_sha256: str
    owner: str


@value
class Begun:
    """Nobody has sent this POST yet: answer it."""


@value
class Kept:
    """It was answered before, with this, and charged."""

    answer: Answer
    charged_micro: int


@value
class NotAgain:
    """It is being answered, was another one, or was answered with what can't be given again."""

    code: Literal["idempotency_in_progress", "idempotency_mismatch", "idempotency_not_replayable"]


@value
class Forget:
    """Drop the record that `attempt` opened, unless a hold or a charge belongs to it."""

    account: str
    route: str
    name: str
    attempt: str


@value
class Reserve:
    """Take what a request may need, all of it or nothing.

    `prompt` holds the counts that are known or bounded before the call. `output_tokens` is how many tokens the answer
    may have in all (n choices together): with `explicit` all of them are held or the request is refused; without, the
    hold shrinks to what is affordable, to `output_minimum` at the least.
    """

    charge_id: str  # UUIDv7, ours
    request_id: str  # the client's x-request-id or ours
    owner: str  # the gateway replica; its heartbeat keeps the hold alive
    key_sha256: str
    key_id: str
    account: str
    plan: str
    endpoint: Endpoint
    model_id: str
    catalogue_revision: int
    account_limits: Limits
    key_limits: Limits
    prompt: Mapping[Unit, int]
    prices: Mapping[Unit, int]
    output_tokens: int = 0
    output_minimum: int = 1
    explicit: bool = False
    deadline_ms: int = 600_000  # from now; a hold past it is closed by the reaper
    # A fallback's: this hold is released in the same transaction and no second request is counted; where the reserve is
    # refused it stays, and its caller settles it.
    replaces: str | None = None
    covered: int = 0  # of the tokens granted, how many may leave at once: a first Cover without a turn of its own
    key_uid: str = ""  # KeyEntry.uid: the key's own counts begin anew with a re-created ApiKey
    repeat: Repeat | None = None


@value
class Cover:
    """Before output token n leaves, covered >= n is durable. Idempotent; never lowers. `prompt_tokens` once known.
    Fails with HoldClosed where the hold was closed meanwhile (past its deadline): send nothing more."""

    charge_id: str
    output_tokens: int
    prompt_tokens: int | None = None


@value
class Settle:
    """Close a hold with what was really used. Settling a closed hold again answers its first receipt.

    The ledger decides what counts as a successful request (and is priced as one): "ok", and "cancelled" where something
    was generated; `counts["requests"]` is ignored. "released" charges nothing whatever the counts are. Fails with
    UnknownCharge for an id that was never reserved. After LedgerUnavailable the store goes on trying by itself.
    """

    charge_id: str
    counts: Mapping[Unit, int]
    status: SettleStatus
    http_status: int = 200
    error_code: str | None = None
    estimated: bool = False
    duration_ms: int = 0
    first_token_ms: int | None = None
    fallback_from: str | None = None
    fallback_depth: int = 0
    answer: Answer | None = None  # to be kept, where the request has an Idempotency-Key


Op = Reserve | Cover | Settle | Begin | Forget


@value
class RateState:
    """The numbers of the x-ratelimit-* headers after this decision; None: no such limit."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_ms: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_ms: int | None = None


@value
class Reserved:
    charge_id: str
    held_micro: int
    output_tokens: int  # granted, n choices together: the upstream's maximum
    rates: RateState = field(default_factory=RateState)
    credits_left_micro: int | None = None  # after this hold; None: no limit


@value
class Refused:
    code: RefusalCode
    message: str  # for the client, in the contract's words
    retry_after_s: int | None = None
    limit: str = (
        ""  # requests_per_minute, tokens_per_minute, concurrent_requests, credits, quota, trial: a metric label
    )
    rates: RateState = field(default_factory=RateState)


@value
class Stale:
    """The catalogue moved on in a way that touches this request: load `revision` and decide again."""

    revision: int


@value
class Receipt:
    charge_id: str
    charged_micro: int
    overrun_micro: int  # used beyond the hold: recorded, not charged
    counts: Mapping[Unit, int]


class LedgerUnavailable(Exception):
    """The database can't be reached, or doesn't answer in time; the message is for logs, never for clients."""


class HoldClosed(Exception):
    """The hold of this charge id is not open any more."""


class UnknownCharge(Exception):
    """No hold and no receipt has this charge id."""
