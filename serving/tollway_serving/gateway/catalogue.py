"""The catalogue in memory: every request looks its key, plan and model up here. Filled from `Ledger.load_catalogue`.

One task follows the ledger's revision, so that a change is here within a poll (300 ms); a request that the ledger
finds to be ahead of us loads at once (`catch_up`).
"""

import asyncio
import time
from dataclasses import dataclass

import structlog

from tollway_serving.contract.catalogue import Endpoint, KeyEntry, ModelEntry, PlanEntry
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import CatalogueDelta, Ledger

log = structlog.get_logger(__name__)

_RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Access:
    """A key with its plan: what a caller may do."""

    key: KeyEntry
    plan: PlanEntry
    model_ids: frozenset[str]  # plan ∩ key

    def allows(self, endpoint: Endpoint) -> bool:
        return (self.plan.endpoints is None or endpoint in self.plan.endpoints) and (
            self.key.endpoints is None or endpoint in self.key.endpoints
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model's entry with its lists as sets."""

    entry: ModelEntry
    parameters: frozenset[str]
    capabilities: frozenset[str]


class Catalogue:
    """Changed only between awaits of the event loop, so that a request always sees one whole state."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.revision = 0
        self.loaded = False
        self.models: dict[str, Model] = {}
        self._names: dict[str, str] = {}  # ids and aliases
        self._plans: dict[str, PlanEntry] = {}
        self._keys: dict[str, KeyEntry] = {}
        self._access: dict[str, Access] = {}  # by sha256, made when first asked for

    async def start(self) -> None:
        """Loads once if the ledger answers, then follows. A ledger that is away keeps us unready, not down."""
        try:
            await self._load()
        except LedgerUnavailable as error:
            log.warning("catalogue_not_loaded", error=str(error))
            self._ledger.revision_changed.set()
        self._task = asyncio.create_task(self._follow(), name="catalogue")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def catch_up(self, revision: int) -> None:
        """Returns when `revision` or a later one is loaded. May raise LedgerUnavailable."""
        if self.revision < revision:
            await self._load(revision)

    def access(self, sha256: str) -> Access | None:
        """The key with this hash and its plan; None: unknown."""
        found = self._access.get(sha256)
        if found is None:
            key = self._keys.get(sha256)
            plan = self._plans.get(key.plan) if key else None
            if key is None or plan is None:
                return None
            ids = frozenset(plan.model_ids)
            found = Access(key, plan, ids if key.model_ids is None else ids.intersection(key.model_ids))
            self._access[sha256] = found
        return found

    def model(self, access: Access, name: str) -> Model | None:
        """The model with this id or alias, if it exists and the caller may use it."""
        model_id = self._names.get(name)
        return self.models.get(model_id) if model_id is not None and model_id in access.model_ids else None

    def apply(self, delta: CatalogueDelta) -> None:
        for model_id in delta.removed_models:
            self.models.pop(model_id, None)
        for entry in delta.models:
            self.models[entry.model_id] = Model(entry, frozenset(entry.parameters), frozenset(entry.capabilities))
        for name in delta.removed_plans:
            self._plans.pop(name, None)
        self._plans.update((plan.name, plan) for plan in delta.plans)
        for sha256 in delta.removed_keys:
            self._keys.pop(sha256, None)
        self._keys.update((key.sha256, key) for key in delta.keys)
        if delta.models or delta.removed_models:
            # Aliases lose to ids; of two models with one alias the smaller id wins, in every replica alike.
            ordered = sorted(self.models.values(), key=lambda model: model.entry.model_id, reverse=True)
            self._names = {alias: m.entry.model_id for m in ordered for alias in m.entry.aliases}
            self._names.update((m.entry.model_id, m.entry.model_id) for m in ordered)
        self._access.clear()
        self.revision = delta.revision
        self.loaded = True

    async def _load(self, revision: int = 0) -> None:
        async with self._lock:
            if self.loaded and revision and self.revision >= revision:
                return
            self.apply(await self._ledger.load_catalogue(self.revision))

    async def _follow(self) -> None:
        while True:
            await self._ledger.revision_changed.wait()
            self._ledger.revision_changed.clear()
            try:
                if not self.loaded or self.revision < self._ledger.revision:
                    started = time.monotonic()
                    await self._load()
                    log.info("catalogue_loaded", revision=self.revision, ms=round((time.monotonic() - started) * 1000))
            except LedgerUnavailable as error:
                log.warning("catalogue_not_loaded", error=str(error))
                await asyncio.sleep(_RETRY_S)
                self._ledger.revision_changed.set()
            except Exception:
                # A row that this release can't read must not end the task that brings revocations.
                log.exception("catalogue_unreadable")
                await asyncio.sleep(_RETRY_S * 4)
                self._ledger.revision_changed.set()
