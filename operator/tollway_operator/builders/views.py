"""What the builders find out about each object: read by the catalogue and application builders, plan and status."""

from dataclasses import dataclass, field
from operator import attrgetter

from tollway_operator.builders.pools import Pool
from tollway_operator.observed import Parsed, Problem
from tollway_operator.ports import SecretView
from tollway_operator.resources import ApiKey, ModelDeployment, Plan
from tollway_serving.contract.catalogue import KeyEntry, ModelEntry, PlanEntry
from tollway_serving.contract.engines import EngineFacts

uid_of = attrgetter("parsed.raw.uid")
"""Of any view."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """`entry` is what should be published; of an object that is not accepted, the last published one stays."""

    parsed: Parsed[ModelDeployment]
    model_id: str
    refused: Problem | None = None  # why it is not accepted
    unscheduled: Problem | None = None  # accepted, but there is no place to run it
    facts: EngineFacts | None = None
    app: str | None = None  # the Serve application's name; None: it needs none
    pool: Pool | None = None  # the pods that it needs, where pods are made for models
    base: str | None = None  # of an adapter, the model that it runs in: `app` is that model's
    entry: ModelEntry | None = None
    aliases_lost: tuple[Problem, ...] = ()
    fallbacks_lost: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()  # fields without effect here
    note: str = ""  # what could not be found out about it
    provider_key: tuple[str, tuple[str, str, str]] | None = None  # file name: (namespace, secret, key)

    @property
    def published(self) -> bool:
        return self.entry is not None


@dataclass(frozen=True, slots=True)
class PlanView:
    parsed: Parsed[Plan]
    refused: Problem | None = None
    unresolved: tuple[Problem, ...] = ()  # references that give nothing
    entry: PlanEntry | None = None


@dataclass(frozen=True, slots=True)
class KeyView:
    """`entries` are all hashes to accept: the current key's and, during an overlap, those that it replaced."""

    parsed: Parsed[ApiKey]
    refused: Problem | None = None
    secret: SecretView | None = None  # what is under the name of its Secret
    current: KeyEntry | None = None
    known: bool = False  # gateways have the current one
    entries: tuple[KeyEntry, ...] = ()
    prefix: str = ""
    last_four: str = ""
    rotated_at: int | None = None
    rotate_at: int | None = None  # when a fresh key is due
    generated: bool = True  # the Secret is ours to make
    secret_missing: bool = False
    expired: bool = False

    plan: str = field(init=False, compare=False)
    """The plan and the account that its object names; "" where it can't be read."""
    account: str = field(init=False, compare=False)
    user: tuple[str, str] | None = field(init=False, compare=False)
    """Plan and account of what is accepted."""
    moments: tuple[int, ...] = field(init=False, compare=False)
    """When it becomes another one although nobody changes an object."""

    def __post_init__(self) -> None:
        resource, first = self.parsed.resource, next(iter(self.entries), None)
        expires = self.current.expires_at if self.current is not None and not self.expired else None
        moments = (self.rotate_at, expires, *(entry.replaced_until for entry in self.entries))
        for name, value in (
            ("plan", resource.plan if resource is not None else ""),
            ("account", resource.account if resource is not None else ""),
            ("user", (first.plan, first.account) if first is not None else None),
            ("moments", tuple(moment for moment in moments if moment is not None)),
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Views:
    models: tuple[ModelView, ...] = field(default=())
    plans: tuple[PlanView, ...] = field(default=())
    keys: tuple[KeyView, ...] = field(default=())
