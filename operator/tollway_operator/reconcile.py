"""One level-triggered pass over the whole world, and the loop around it; `tollway up` and `tollway operator` run it.

Everything is gathered into a frozen `Observed`, pure builders say what should exist, a plan says what to change and
why, one executor applies it, pure checks compute the statuses.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import structlog

from tollway_operator.builders.applications import same
from tollway_operator.builders.desired import Desired, build
from tollway_operator.builders.views import Views
from tollway_operator.errors import NotOurs
from tollway_operator.execute import Executed, describe, execute, write_statuses
from tollway_operator.housekeeping import Housekeeping, in_time
from tollway_operator.memo import Memo
from tollway_operator.metrics import METRICS
from tollway_operator.observed import Memory, Observed, Parsed, Parser, read_memory
from tollway_operator.plan import Plan, decide
from tollway_operator.platform import Platform
from tollway_operator.platform_link import PlatformLink
from tollway_operator.ports import AppStatus, Kind, Objects, Ray, Snapshot
from tollway_operator.ray_link import RayLink
from tollway_operator.resources import ApiKey
from tollway_operator.settings import Settings
from tollway_operator.status import Judgement, Outcome, Reach, judge
from tollway_operator.workers import Workers
from tollway_serving.contract.applications import GATEWAY_APP
from tollway_serving.contract.catalogue import Catalogue, KeyEntry
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import Publisher

log = structlog.get_logger(__name__)

_WRITERS = 16
_REST = 0.3  # seconds that a pass waits for its own writes
_CLOSE = 5.0
_COALESCE = 0.05  # seconds between two passes, so that a burst of changes becomes few
_FIRST_LOOK = 5.0
_LONGEST_TURN = 3.0  # seconds for which a slow pass may write, before the next one looks at what is new
_AT_A_TIME = 0.05  # seconds for which objects are read before anything else may run
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass found and did; handed to `on_progress` after every pass, also after one with errors."""

    judged: tuple[Judgement, ...] = ()
    """The wanted `.status` of every object."""

    gateway: AppStatus | None = None
    """The gateway's application as Ray reports it; None while Ray is unreachable or doesn't have it yet."""

    settled: bool = False
    """Nothing is in transition: the gateway runs and every object is ready or says why it can't be."""

    details: tuple[str, ...] = ()
    """What this pass changed and why, one line each."""

    errors: tuple[str, ...] = ()
    """What didn't work and will be tried again, one line each."""

    @property
    def statuses(self) -> Mapping[tuple[Kind, str, str], Mapping[str, Any]]:
        """By (kind, namespace, name)."""
        return {judgement.raw.key: judgement.status for judgement in self.judged}


OnProgress = Callable[[Progress], None]


async def run(
    objects: Objects,
    ray: Ray,
    publisher: Publisher,
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_progress: OnProgress | None = None,
    platform: Platform | None = None,
) -> None:
    """Reconciles until `stop` is set; returns once the pass in progress is finished. The publisher must be started.
    `platform` makes pods for models: then it is the same object as `ray`, and `settings.pods` says what they get.

    Raises nothing that a pass may run into: errors are logged, reported in `Progress` and tried again.
    """
    reconciler = Reconciler(objects, ray, publisher, settings, platform=platform)
    async with reconciler:
        while not stop.is_set():
            try:
                progress = await reconciler.reconcile()
            except Exception as error:  # a bug with one object must not end the others' operator
                log.exception("pass_failed")
                METRICS.failed()
                progress = Progress(errors=(describe(error),))
            if on_progress is not None:
                on_progress(progress)
            await reconciler.wait(stop)


class Reconciler:
    """The passes' state: what was read before, what is in flight. Use as an async context manager."""

    def __init__(
        self,
        objects: Objects,
        ray: Ray,
        publisher: Publisher,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        *,
        platform: Platform | None = None,
    ) -> None:
        self._clock = clock
        self._objects = objects
        self._publisher = publisher
        self._settings = settings
        self._wake = asyncio.Event()
        self._link = RayLink(ray, self._ray_interval, self._wake.set)
        self._platform = PlatformLink(platform, self._ray_interval, self._wake.set) if platform else None
        self._workers = Workers(_WRITERS, self._wake.set)
        self._house = Housekeeping(publisher, self._accounts, settings.usage_interval, self._wake.set)
        self._parser = Parser()
        self._memo = Memo()
        self._published: Catalogue | None = None  # this process is the only writer: read once, and in full passes
        self._memory: Memory | None = None  # likewise
        self._views = Views()
        self._unremembered = False
        self._seen: frozenset[str] = frozenset()
        self._providers: Mapping[str, tuple[str, str, str]] | None = None
        self._sources: Mapping[str, tuple[str, str, str]] | None = None
        self._repaired_at: float | None = None
        self._settled = False
        self._next_at: int | None = None  # when something changes by itself, seconds since the epoch
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Reconciler":
        self._tasks = [asyncio.create_task(self._link.run()), asyncio.create_task(self._house.run())]
        if self._platform is not None:
            self._tasks.append(asyncio.create_task(self._platform.run()))
        await self._link.first_look(_FIRST_LOOK)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._workers.close(_CLOSE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reconcile(self) -> Progress:
        """One pass."""
        started = time.monotonic()
        self._wake.clear()
        self._objects.changed.clear()
        repair = self._repair_is_due()
        observed = await self._gather(repair)
        gathered = time.monotonic()
        desired = build(observed, self._settings, self._memo)
        if self._platform is not None and desired.demands is not None:
            self._platform.want(desired.demands)
        known = self._providers == desired.provider_keys and self._workers.failure("provider_keys") is None
        loaders_known = self._sources == desired.source_keys and self._workers.failure("source_keys") is None
        plan = decide(
            observed,
            desired,
            self._settings,
            repair=repair,
            provider_keys_known=known,
            source_keys_known=loaders_known,
            memo=self._memo,
        )
        if plan.publish is None and observed.published is not None:
            # The same content: from now on the same objects, too, so that the next pass sees that at a glance.
            self._published = desired.catalogue
        took = min(time.monotonic() - gathered, _LONGEST_TURN)
        executed = await self._execute(plan, observed, took)
        await self._workers.rest(_REST)
        outcome = self._outcome(observed, executed)
        judged = judge(observed, desired, outcome, self._memo)
        written = await write_statuses(judged, self._objects, self._workers, took)
        await self._workers.rest(_REST)
        return self._conclude(observed, desired, plan, executed, outcome, judged, written, started)

    async def wait(self, stop: asyncio.Event) -> None:
        """Until something has changed, is due, or `stop` is set."""
        seconds = self._settings.slow_interval if self._settled else self._settings.fast_interval
        if self._next_at is not None:
            seconds = min(seconds, max(0.0, self._next_at - self._clock()))
        retry = self._workers.next_try()
        seconds = min(seconds, seconds if retry is None else retry)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._objects.changed, self._wake, stop)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _COALESCE)

    # Gathering

    async def _gather(self, repair: bool) -> Observed:
        snapshot = await self._objects.snapshot()
        await self._read_ahead(snapshot)
        found = self._parser.parse(snapshot)
        if self._memory is None:
            self._memory = read_memory(snapshot.memory)
        ledger_error = ""
        if self._published is None or repair:
            try:
                self._published = await in_time(self._publisher.published())
            except (LedgerUnavailable, TimeoutError) as error:
                ledger_error = describe(error)
        holds = None
        if self._memory.drain:
            with suppress(LedgerUnavailable, TimeoutError):
                holds = await in_time(self._publisher.open_holds())
        observed = Observed(
            now=int(self._clock()),
            models=found["ModelDeployment"],
            plans=found["Plan"],
            keys=found["ApiKey"],
            secrets=snapshot.secrets,
            memory=self._memory,
            complete=snapshot.complete,
            ray=self._link.status,
            ray_error=self._link.error,
            ray_busy=self._link.busy,
            last_words=self._link.last_words,
            platform=self._platform.status if self._platform is not None else None,
            published=self._published,
            ledger_error=ledger_error,
            holds=holds,
            usage=self._house.usage,
            seen_keys=self._seen,
        )
        self._seen = self._memo.once(_seen, observed.keys, self._published and self._published.keys, self._seen)
        return observed

    async def _read_ahead(self, snapshot: Snapshot) -> None:
        """Some at a time: while thousands of new objects are read, as after a start, a Lease must still be renewed."""
        until = time.monotonic() + _AT_A_TIME
        for raw in self._parser.unread(snapshot):
            self._parser.read(raw)
            if time.monotonic() >= until:
                await asyncio.sleep(0)
                until = time.monotonic() + _AT_A_TIME

    def _repair_is_due(self) -> bool:
        now = time.monotonic()
        if self._repaired_at is not None and now - self._repaired_at < self._settings.full_interval:
            return False
        self._repaired_at = now
        return True

    # Carrying out

    async def _execute(self, plan: Plan, observed: Observed, took: float) -> Executed:
        executed = await execute(
            plan, self._objects, self._link, self._publisher, self._workers, self._settings, observed.ray, took
        )
        if plan.publish is not None:
            # After a failure nobody knows whether it was committed: read again.
            self._published = plan.publish if executed.published else None
        if plan.provider_keys is not None:
            self._providers = plan.provider_keys
        if plan.source_keys is not None:
            self._sources = plan.source_keys
        if plan.remember is not None:
            self._memory = plan.remember
        self._unremembered = not executed.remembered
        if plan.details:
            more = len(plan.details) - _SHOWN
            log.info("changes", details=[*plan.details[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        return executed

    def _outcome(self, observed: Observed, executed: Executed) -> Outcome:
        errors: dict[str, str] = {}
        not_ours = set()
        if self._workers.failures():
            for parsed in observed.keys:
                if parsed.resource is None:
                    continue
                failure = self._workers.failure(("secret", parsed.raw.namespace, parsed.resource.secret_name))
                if failure is not None:
                    errors[parsed.raw.uid] = describe(failure.error)
                    if isinstance(failure.error, NotOurs):
                        not_ours.add(parsed.raw.uid)
        return Outcome(
            Reach(
                published=executed.published and observed.published is not None,
                ledger_error=executed.ledger_error or observed.ledger_error,
                ray_error=observed.ray_error,
            ),
            refused_apps=dict(self._link.refusals),
            key_errors=errors,
            not_ours=frozenset(not_ours),
        )

    # Concluding

    def _conclude(
        self,
        observed: Observed,
        desired: Desired,
        plan: Plan,
        executed: Executed,
        outcome: Outcome,
        judged: tuple[Judgement, ...],
        written: bool,
        started: float,
    ) -> Progress:
        gateway = observed.ray.apps.get(GATEWAY_APP) if observed.ray else None
        gateway_runs = (
            gateway is not None
            and gateway.status == "RUNNING"
            and same(gateway.config, desired.rollout.configs.get(GATEWAY_APP))
        )
        self._views = desired.views
        self._settled = (
            gateway_runs
            and written
            and outcome.reach.published
            and observed.complete
            and not executed.deferred
            and not self._link.busy
            and not desired.rollout.draining
            and not _leaving(observed, desired)
            and not desired.rollout.restarting
            and plan.put is None
            and all(judgement.settled for judgement in judged)
        )
        self._next_at = _next_at(observed, desired)
        errors = self._errors(outcome, desired)
        METRICS.passed(time.monotonic() - started, judged, errors)
        return Progress(
            judged=judged,
            gateway=gateway,
            settled=self._settled,
            details=plan.details,
            errors=errors,
        )

    def _errors(self, outcome: Outcome, desired: Desired) -> tuple[str, ...]:
        lines = [
            f"{'/'.join(map(str, key))}: {failure.error}" if isinstance(key, tuple) else f"{key}: {failure.error}"
            for key, failure in self._workers.failures().items()
        ]
        reach = outcome.reach
        if not reach.published:
            lines.append(f"ledger: {reach.ledger_error}")
        if reach.ray_error or self._link.put_error:
            lines.append(f"Ray: {reach.ray_error or self._link.put_error}")
        if self._platform is not None:
            status = self._platform.status
            said = (self._platform.error, status.problem if status else "", status.upgrade if status else "")
            lines += [f"pods: {text}" for text in said if text]
        if self._unremembered:
            lines.append("the state of applications could not be remembered")
        if desired.kept_keys:
            lines.append(
                f"{desired.kept_keys} published keys have no ApiKey, more than half of all: they stay until "
                "allow_mass_revocation is set or their ApiKeys are back"
            )
        return tuple(lines)

    # Behind the passes

    def _accounts(self) -> Mapping[str, str]:
        """The plan of each account that has a key."""
        return {user[1]: user[0] for view in self._views.keys if (user := view.user) is not None}

    def _ray_interval(self) -> float:
        return self._settings.fast_interval if not self._settled else min(10.0, self._settings.slow_interval)


def _leaving(observed: Observed, desired: Desired) -> bool:
    """Whether Ray is still ending an application."""
    there = observed.ray.apps.items() if observed.ray else ()
    return any(app.status == "DELETING" or (app.config and name not in desired.rollout.configs) for name, app in there)


def _next_at(observed: Observed, desired: Desired) -> int | None:
    """The next moment at which a status or a key changes although nobody changes an object."""
    moments = [moment for view in desired.views.keys for moment in view.moments]
    if desired.rollout.wake_at is not None:
        moments.append(desired.rollout.wake_at)
    return min((moment for moment in moments if moment > observed.now), default=None)


def _seen(
    keys: tuple[Parsed[ApiKey], ...], published: tuple[KeyEntry, ...] | None, before: frozenset[str]
) -> frozenset[str]:
    """Uids of the ApiKeys that were alive once and may still be published."""
    kept = before if published is None else before.intersection(map(attrgetter("uid"), published))
    return kept.union(map(attrgetter("raw.uid"), keys))
