"""What the builders find out about each object: read by the catalogue and application builders, plan and status."""

from dataclasses import dataclass, field

from tollway_operator.builders.pools import Pool
from tollway_operator.observed import Parsed, Problem
from tollway_operator.resources import ApiKey, ModelDeployment, Plan
from tollway_serving.contract.catalogue import KeyEntry, ModelEntry, PlanEntry
from tollway_serving.contract.engines import EngineFacts


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
    current: KeyEntry | None = None
    entries: tuple[KeyEntry, ...] = ()
    prefix: str = ""
    last_four: str = ""
    rotated_at: int | None = None
    rotate_at: int | None = None  # when a fresh key is due
    generated: bool = True  # the Secret is ours to make
    secret_missing: bool = False
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Views:
    models: tuple[ModelView, ...] = field(default=())
    plans: tuple[PlanView, ...] = field(default=())
    keys: tuple[KeyView, ...] = field(default=())
