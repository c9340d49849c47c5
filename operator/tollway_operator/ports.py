"""The seams of the operator: `Objects` (Kubernetes or YAML files) and `Ray` (the Serve REST API), as protocols.

`reconcile` is given one of each and a ledger `Publisher`; nothing behind them knows which implementation it has.
Implementations: `cluster` and `files` for Objects, `serve_api` for Ray.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["ModelDeployment", "Plan", "ApiKey"]
AppState = Literal["NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING"]


@dataclass(frozen=True, slots=True)
class Raw:
    """One object as stored, not yet validated. `spec` has the schema's defaults filled in."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    generation: int
    created: int  # seconds since the epoch
    resource_version: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def key(self) -> tuple[Kind, str, str]:
        return (self.kind, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SecretValue:
    """What may be known of a secret's value outside its Secret: never the value."""

    sha256: str  # hex, of the value with surrounding white space removed
    length: int
    prefix: str  # first 10 characters, only of keys that we generated; else ""
    last_four: str  # only of values of at least 20 characters; else ""


@dataclass(frozen=True, slots=True)
class SecretView:
    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    owner_uid: str | None  # the ApiKey in ownerReferences, if any
    created: int
    values: Mapping[str, SecretValue]  # by data key


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. `complete` is False until every watched namespace was listed once: then nothing may
    be deleted on account of its absence."""

    objects: tuple[Raw, ...]
    secrets: Mapping[tuple[str, str], SecretView]
    memory: Mapping[str, str]  # what `remember` kept: the last good application configs
    complete: bool = True


class Objects(Protocol):
    changed: asyncio.Event
    """Set when anything in the next snapshot may differ from the last one; the reconciler clears it."""

    async def snapshot(self) -> Snapshot: ...

    async def ensure_key(self, owner: Raw, secret_name: str, base_url: str) -> None:
        """Makes the Secret with a fresh key if it is absent, and repairs the labels, owner and OPENAI_BASE_URL of one
        that is ours. Never changes an existing key. NotOurs if a Secret of that name belongs to somebody else."""

    async def rotate_key(self, owner: Raw, secret_name: str) -> None:
        """Replaces the key in our own Secret by a fresh one."""

    async def delete_key(self, namespace: str, secret_name: str, uid: str) -> None:
        """Deletes a Secret of ours that an ApiKey no longer names."""

    async def write_status(self, target: Raw, status: Mapping[str, Any]) -> None:
        """Replaces the status. Gone if the object is no longer there."""

    async def record_event(
        self, target: Raw, type_: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None: ...

    async def remember(self, memory: Mapping[str, str]) -> None:
        """Replaces what the next snapshot's `memory` answers; survives restarts."""

    async def sync_provider_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        """Copies provider keys to where gateways read them: {file name: (namespace, secret, key)}."""

    async def sync_source_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        """The same for what models' loaders read (spec.source.secretRef)."""


@dataclass(frozen=True, slots=True)
class AppStatus:
    """One Serve application as Ray reports it."""

    name: str
    status: AppState
    message: str
    config: Mapping[str, Any] | None  # the config that was last put for it, as Ray kept it
    running_replicas: int = 0
    total_replicas: int = 0
    replica_states: Mapping[str, int] = field(default_factory=dict)
    last_deployed: float = 0.0
    nodes: frozenset[str] = frozenset()  # addresses of the Ray nodes that its replicas are on, also of ending ones


@dataclass(frozen=True, slots=True)
class RayStatus:
    apps: Mapping[str, AppStatus]
    http_port: int = 8000


class Ray(Protocol):
    async def status(self) -> RayStatus:
        """Unreachable if the dashboard doesn't answer."""

    async def put(self, applications: tuple[Mapping[str, Any], ...]) -> None:
        """Sends the whole application set. Refused (with Ray's words) if Ray finds it invalid."""

    async def logs(self, app: str, lines: int = 20) -> str:
        """The last lines of a failed application's replica, for its condition; "" if there are none."""
