"""What the gateway and the operator may ask of a ledger; `store.open_ledger` and `publish.open_publisher` make them.

The gateway's tests use the real SQLite store behind the same protocol, so nothing here has a stand-in.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from tollway_serving.contract.catalogue import Catalogue, KeyEntry, ModelEntry, PlanEntry
from tollway_serving.ledger.ops import (
    Begin,
    Begun,
    Cover,
    Forget,
    Kept,
    NotAgain,
    Op,
    Receipt,
    Refused,
    Reserve,
    Reserved,
    Settle,
    Stale,
)
from tollway_serving.ledger.questions import Standing, Who, WindowQuery, WindowRow


@dataclass(frozen=True, slots=True)
class CatalogueDelta:
    """Rows changed after the revision asked for; the removed_* are the ids of rows that are gone."""

    revision: int
    models: tuple[ModelEntry, ...] = ()
    plans: tuple[PlanEntry, ...] = ()
    keys: tuple[KeyEntry, ...] = ()
    removed_models: tuple[str, ...] = ()
    removed_plans: tuple[str, ...] = ()
    removed_keys: tuple[str, ...] = ()  # sha256


@dataclass(frozen=True, slots=True)
class Replica:
    """A gateway replica as it last announced itself."""

    owner: str
    metrics_url: str
    seen: int  # seconds since the epoch, the database's clock


class Ledger(Protocol):
    """The gateway's side. Every call may raise LedgerUnavailable, within the store's time limit (2 s)."""

    revision: int
    """The newest catalogue revision seen with any batch or poll; higher than the loaded one: load again."""

    revision_changed: asyncio.Event
    """Set whenever `revision` grows; the gateway clears it."""

    async def start(self) -> None:
        """Connects, checks the schema's version (LedgerUnavailable outside its range) and starts polling."""

    async def close(self) -> None:
        """Finishes what was submitted, then disconnects."""

    @overload
    def submit(self, op: Reserve) -> "asyncio.Future[Reserved | Refused | Stale]": ...
    @overload
    def submit(self, op: Cover) -> "asyncio.Future[None]": ...
    @overload
    def submit(self, op: Settle) -> "asyncio.Future[Receipt]": ...
    @overload
    def submit(self, op: Begin) -> "asyncio.Future[Begun | Kept | NotAgain]": ...
    @overload
    def submit(self, op: Forget) -> "asyncio.Future[None]": ...
    def submit(self, op: Op) -> "asyncio.Future[Any]":
        """Synchronous: once it returns, the op will be carried out even if the caller is cancelled. A Reserve whose
        future was cancelled is released by the store itself."""

    async def load_catalogue(self, since: int) -> CatalogueDelta:
        """Everything that changed after revision `since` (0: all)."""

    async def standing(self, who: Who) -> Standing:
        """An account's month, for the account itself. Like the next bounded by reports' own, longer time limit."""

    async def window_usage(self, query: WindowQuery) -> list[WindowRow]:
        """What an account used in each window. Raises questions.TooManyRowsError, questions.NotKeptError."""

    async def announce(self, owner: str, metrics_url: str) -> None:
        """Heartbeat of this replica; holds of an owner silent for longer than the store's grace are reaped."""


@dataclass(frozen=True, slots=True)
class AccountUsage:
    """For an ApiKey's status. Credits in micro-credits; None: no limit."""

    period_end: int  # seconds since the epoch
    credits_used_micro: int
    credits_left_micro: int | None
    quotas_used: Mapping[str, int] = field(default_factory=dict)  # by quota name, in the meter's units


class Publisher(Protocol):
    """The operator's side: the only writer of the catalogue, and the reader of what statuses show."""

    async def start(self) -> None:
        """Connects and migrates the schema to this release's version (only a leader calls it)."""

    async def close(self) -> None: ...

    async def published(self) -> Catalogue:
        """What this scope has published now."""

    async def publish(self, wanted: Catalogue) -> int:
        """Makes this scope's rows equal to `wanted`, in one transaction that writes only what differs and bumps the
        revision only if anything did. Answers the revision. Key removals are part of the same transaction."""

    async def open_holds(self) -> Mapping[str, int]:
        """Open holds by model id: what a withdrawn model still has to finish."""

    async def usage(self, accounts: Mapping[str, str]) -> Mapping[str, AccountUsage]:
        """Usage of the current period for each account, by the limits of its plan: {account: plan name}."""

    async def replicas(self) -> tuple[Replica, ...]:
        """Gateway replicas with a fresh heartbeat: the metrics targets."""

    async def reap(self) -> int:
        """Closes holds that are past their deadline or whose owner fell silent; answers how many. Gateways do the
        same; it is safe from any number of processes."""
