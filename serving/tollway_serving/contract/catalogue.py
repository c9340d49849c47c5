"""The catalogue: what the operator publishes into the ledger's database and every gateway replica loads.

One entry a model, plan and key. References are resolved by the operator (a plan lists the model ids that it really
gives), so that a request needs dictionary look-ups only. Durations are whole milliseconds, times are seconds since
the epoch, money is micro-credits.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tollway_serving.contract.units import Meter, Period, Unit

Endpoint = Literal[
    "ChatCompletions",
    "Completions",
    "Embeddings",
    "ImageGenerations",
    "ImageEdits",
    "AudioSpeech",
    "AudioTranscriptions",
    "AudioTranslations",
    "VideoGenerations",
    "MusicGenerations",
    "Files",
    "DocumentsAnonymize",
    "DocumentsStripMetadata",
]
Capability = Literal["Tools", "ImageInput", "AudioInput", "FileInput", "StructuredOutput", "Logprobs", "Reasoning"]
FallbackReason = Literal["Unavailable", "Overloaded", "Timeout", "RateLimited", "ContextTooLong", "CreditsLow"]
Protocol = Literal["OpenAI", "Anthropic", "Gemini"]
ModelState = Literal["Ready", "Starting", "Asleep", "Unavailable"]
KeyState = Literal["Active", "Suspended"]


class Entry(BaseModel):
    """Base of all entries: immutable, strict about unknown fields so that a version mismatch is seen at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OWN_HEADERS = ("accept", "connection", "content-length", "content-type", "host", "transfer-encoding", "x-request-id")
"""Request headers that the gateway sends to each model itself."""


class Target(Entry):
    """Where a model answers."""

    url: str  # up to and without the route: http://127.0.0.1:8000/_models/ml.small/v1
    protocol: Protocol = "OpenAI"
    model: str  # the id that the backend knows
    internal: bool = True  # our own application: send the internal token
    secret: str | None = None  # name of a file in the secrets folder that holds the provider's key
    headers: dict[str, str] = {}
    continuous_usage: bool = True  # every chunk carries cumulative usage; else only the last one


class Fallback(Entry):
    model_id: str
    when: tuple[FallbackReason, ...] = ("Unavailable", "Overloaded", "Timeout")


class Timeouts(Entry):
    connect_ms: int = 2_000
    first_byte_ms: int = 60_000
    idle_ms: int = 60_000
    total_ms: int = 600_000


class TokenBound(Entry):
    """The upper bound on prompt tokens where the model's tokenizer is not at hand: UTF-8 bytes / bytes_per_token
    (tenths, rounded up) + per_message for each message + fixed."""

    tenth_bytes_per_token: int = 10  # 10 = one token a byte, which no byte-level tokenizer exceeds
    per_message: int = 8
    fixed: int = 16


class ModelEntry(Entry):
    model_id: str
    name: str  # namespace/name of the ModelDeployment
    aliases: tuple[str, ...] = ()
    created: int = 0
    owned_by: str = "tollway"
    licence: str | None = None
    parameters_number: str | None = None
    input_format: str = "MODEL_FORMAT_TEXT"
    output_format: str = "MODEL_FORMAT_TEXT"
    endpoints: tuple[Endpoint, ...]
    capabilities: tuple[Capability, ...] = ()
    parameters: tuple[str, ...] = ()  # request parameters beyond the universal ones that the engine carries out
    context_tokens: int
    output_tokens: int  # the most that one answer may have
    inputs_per_call: int = Field(default=256, ge=1)  # texts of an embeddings request; more are sent in turn
    default_output_tokens: int  # held where the client names no maximum
    token_bound: TokenBound = TokenBound()
    target: Target
    fallbacks: tuple[Fallback, ...] = ()
    timeouts: Timeouts = Timeouts()
    prices: dict[Unit, int] = {}  # micro-credits per units.PRICE_UNITS
    state: ModelState = "Ready"
    state_message: str = ""
    cold_start: Literal["Wait", "Refuse"] = "Wait"
    start_seconds: int = 30  # a start's usual length: the Retry-After of model_starting
    queued_requests: int = 100  # calls to this model that one gateway replica lets wait or run at once


class Quota(Entry):
    name: str
    meter: Meter
    limit: int
    period: Period = "Month"
    model_ids: tuple[str, ...] | None = None  # None: all models


class Limits(Entry):
    """What one account (by its plan) or one key (by its own narrowing) may use; None: unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    credits_monthly_micro: int | None = None
    file_size_bytes: int | None = None
    storage_bytes: int | None = None
    trial_seconds: int | None = None  # from the account's first key
    trial_requests: int | None = None
    quotas: tuple[Quota, ...] = ()

    def binds(self) -> bool:
        """Whether anything at all is limited."""
        return self.__dict__ != _UNLIMITED.__dict__


_UNLIMITED = Limits()


class PlanEntry(Entry):
    name: str  # namespace/name
    display_name: str
    tier: Literal["Paid", "Free"] = "Paid"
    limits: Limits = Limits()
    low_watermark_micro: int | None = None
    model_ids: tuple[str, ...]  # every model that it gives, resolved
    endpoints: tuple[Endpoint, ...] | None = None  # None: all
    default_models: dict[Endpoint, str] = {}
    unsupported_parameters: Literal["Refuse", "Ignore"] = "Refuse"


class KeyEntry(Entry):
    """One accepted secret. An ApiKey in rotation has two entries with the same key_id."""

    sha256: str  # hex, of the whole key; the key itself is only in its Secret
    key_id: str  # namespace/name of the ApiKey
    uid: str  # of the ApiKey: a re-created one is another key
    account: str  # namespace/account
    plan: str  # namespace/name
    state: KeyState = "Active"
    created: int = 0
    expires_at: int | None = None
    replaced_until: int | None = None  # another secret has replaced this one; the end of the overlap
    limits: Limits = Limits()  # the key's own, beside its plan's
    model_ids: tuple[str, ...] | None = None
    endpoints: tuple[Endpoint, ...] | None = None


class Catalogue(Entry):
    """The whole desired content of one installation's scope."""

    models: tuple[ModelEntry, ...] = Field(default=())
    plans: tuple[PlanEntry, ...] = Field(default=())
    keys: tuple[KeyEntry, ...] = Field(default=())
