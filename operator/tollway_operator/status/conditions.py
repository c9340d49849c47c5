"""Conditions and the rules of writing them: used by each kind's checks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeVar

from tollway_operator.memo import Clock
from tollway_operator.ports import Raw
from tollway_operator.resources.conditions import Reason

R = TypeVar("R", bound=Reason)
_LONGEST_MESSAGE = 2_000


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Recorded when a condition changes."""

    type_: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The status that an object should have. `changed` is False where it has it already."""

    raw: Raw
    status: Mapping[str, Any]
    changed: bool
    events: tuple[Event, ...] = ()
    settled: bool = True  # nothing about it is about to change by itself
    urgent: bool = True  # a condition changes, not only numbers such as usage


@dataclass(frozen=True, slots=True)
class Reach:
    """What every object's status depends on."""

    published: bool = True  # the ledger has what is wanted
    ledger_error: str = ""
    ray_error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the plan's execution went, as far as statuses tell of it."""

    reach: Reach = field(default_factory=Reach)
    refused_apps: Mapping[str, str] = field(default_factory=dict)  # configs that Ray would not even take, by name
    key_errors: Mapping[str, str] = field(default_factory=dict)  # why Secrets couldn't be written, by the ApiKey's uid
    not_ours: frozenset[str] = frozenset()  # of these ApiKeys: the Secret is somebody else's


def write(
    raw: Raw,
    conditions: Sequence[Condition],
    fields: Mapping[str, Any],
    clock: Clock,
    *,
    settled: bool = True,
    warn: Iterable[tuple[str, str]] = (),
) -> Judgement:
    """The whole status. A condition's transition time moves only when its status does. `warn` lists the (type,
    status) pairs whose arrival is a Warning; other arrivals of a new reason are Normal events."""
    before = {item.get("type"): item for item in raw.status.get("conditions") or () if isinstance(item, Mapping)}
    bad = set(warn)
    written = []
    events = []
    for condition in conditions:
        status = condition.reason.status
        message = condition.message or condition.reason.meaning
        if len(message) > _LONGEST_MESSAGE:
            message = message[: _LONGEST_MESSAGE - 1] + "…"
        old = before.get(condition.type, {})
        same = old.get("status") == status and old.get("lastTransitionTime")
        written.append(
            {
                "type": condition.type,
                "status": status,
                "observedGeneration": raw.generation,
                "lastTransitionTime": old["lastTransitionTime"] if same else timestamp(clock.now),
                "reason": condition.reason.value,
                "message": message,
            }
        )
        if (old.get("status"), old.get("reason")) != (status, condition.reason.value):
            is_bad = (condition.type, status) in bad
            if is_bad or old:  # a first good condition is no news
                events.append(Event("Warning" if is_bad else "Normal", condition.reason.value, message))
    status_ = {
        "observedGeneration": raw.generation,
        "conditions": written,
        **{key: value for key, value in fields.items() if value is not None},
    }
    changed = dict(raw.status) != status_
    urgent = raw.status.get("conditions") != written
    return Judgement(raw, status_, changed, tuple(events) if changed else (), settled, urgent)


@lru_cache(256)
def timestamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sentence(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)


def reason(kind: type[R], value: str) -> R:
    """The reason of that name. ValueError if the condition has none such."""
    for member in kind:
        if member.value == value:
            return member
    raise ValueError(f"{kind.__name__} has no reason {value}")
