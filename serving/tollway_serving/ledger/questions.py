"""What a gateway may ask a ledger about an account, and the answers: plain values, shared by the usage routes, `port`
and `reports`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.ledger.windows import Run

Dimension = Literal["model", "key", "endpoint", "status"]
MAX_ROWS = 50_000


class TooManyRowsError(ValueError):
    """More than MAX_ROWS."""


class NotKeptError(ValueError):
    """Calls from before `from_ms` are not kept one by one any more."""

    def __init__(self, from_ms: int) -> None:
        super().__init__(from_ms)
        self.from_ms = from_ms


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """`runs` in their order; `by_call` for windows that no roll-up fits into."""

    account: str
    runs: tuple[Run, ...]
    by_call: bool = False
    group_by: tuple[Dimension, ...] = ()
    only: Mapping[Dimension, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One group in one window. `group` has the values of `group_by`, in its order."""

    start_ms: int
    end_ms: int
    group: tuple[str, ...]
    requests: int
    input_tokens: int
    output_tokens: int
    charged_micro: int


@dataclass(frozen=True, slots=True)
class Who:
    """A caller: its account, and its key where that has limits (and so counts) of its own."""

    account: str
    account_limits: Limits
    key_subject: str | None = None
    key_limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """In the meter's units. `settled` and `held` together never exceed the limit."""

    quota: Quota
    of_key: bool
    settled: int
    held: int
    ends_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """An account in the current month (UTC). Calls that are still running are in no count but the held ones."""

    now_ms: int
    month: str
    requests: int
    ok: int  # successful ones
    input_tokens: int
    output_tokens: int
    credits_used_micro: int
    credits_left_micro: int | None  # without what calls in flight hold; None: no limit
    first_key_ms: int | None
    trial_settled: int  # successful requests ever
    trial_held: int
    quotas: tuple[QuotaUse, ...]
