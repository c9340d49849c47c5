"""One level-triggered pass over the whole world, and the loop around it; `tollway up` and `tollway operator` run it.

Everything is gathered into a frozen `Observed`, pure builders say what should exist, a plan says what to change and
why, one executor applies it, pure checks compute the statuses.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from tollway_operator.builders.applications import same
from tollway_operator.builders.desired import Desired, build
from tollway_operator.errors import NotOurs, OperatorError
from tollway_operator.execute import Executed, describe, execute, write_statuses
from tollway_operator.metrics import METRICS
from tollway_operator.observed import Memory, Observed, Parser, read_memory
from tollway_operator.plan import Plan, decide
from tollway_operator.platform import Platform
from tollway_operator.platform_link import PlatformLink
from tollway_operator.ports import AppStatus, Kind, Objects, Ray
from tollway_operator.ray_link import RayLink
from tollway_operator.settings import Settings
from tollway_operator.status import Judgement, Outcome, judge
from tollway_operator.workers import Workers
from tollway_serving.contract.applications import GATEWAY_APP
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import AccountUsage, Publisher

log = structlog.get_logger(__name__)

_WRITERS = 16
_REST = 0.3  # seconds that a pass waits for its own writes
_CLOSE = 5.0
_COALESCE = 0.05  # seconds between two passes, so that a burst of changes becomes few
_FIRST_LOOK = 5.0
_LEDGER_TIMEOUT = 10.0
_REAP_INTERVAL = 5.0
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass found and did; handed to `on_progress` after every pass, also after one with errors."""

    statuses: Mapping[tuple[Kind, str, str], Mapping[str, Any]] = field(default_factory=dict)
    """The wanted `.status` of every object, by (kind, namespace, name)."""

    gateway: AppStatus | None = None
    """The gateway's application as Ray reports it; None while Ray is unreachable or doesn't have it yet."""

    settled: bool = False
    """Nothing is in transition: the gateway runs and every object is ready or says why it can't be."""

    details: tuple[str, ...] = ()
    """What this pass changed and why, one line each."""

    errors: tuple[str, ...] = ()
    """What didn't work and will be tried again, one line each."""


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
        self._parser = Parser()
        self._published: Catalogue | None = None  # this process is the only writer: read once, and in full passes
        self._memory: Memory | None = None  # likewise
        self._unremembered = False
        self._seen: frozenset[str] = frozenset()
        self._usage: Mapping[str, AccountUsage] = {}
        self._accounts: Mapping[str, str] = {}
        self._providers: Mapping[str, tuple[str, str, str]] | None = None
        self._sources: Mapping[str, tuple[str, str, str]] | None = None
        self._repaired_at: float | None = None
        self._settled = False
        self._next_at: int | None = None  # when something changes by itself, seconds since the epoch
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Reconciler":
        self._tasks = [asyncio.create_task(self._link.run()), asyncio.create_task(self._housekeeping())]
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
        desired = build(observed, self._settings)
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
        )
        executed = await self._execute(plan, observed)
        await self._workers.rest(_REST)
        outcome = self._outcome(observed, executed)
        judged = judge(observed, desired, outcome)
        written = await write_statuses(judged, self._objects, self._workers)
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
        found = self._parser.parse(snapshot)
        if self._memory is None:
            self._memory = read_memory(snapshot.memory)
        ledger_error = ""
        if self._published is None or repair:
            try:
                self._published = await _in_time(self._publisher.published())
            except (LedgerUnavailable, TimeoutError) as error:
                ledger_error = describe(error)
        holds = None
        if self._memory.drain:
            with suppress(LedgerUnavailable, TimeoutError):
                holds = await _in_time(self._publisher.open_holds())
        observed = Observed(
            now=int(self._clock()),
            models=tuple(found["ModelDeployment"]),
            plans=tuple(found["Plan"]),
            keys=tuple(found["ApiKey"]),
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
            usage=self._usage,
            seen_keys=self._seen,
        )
        alive = {parsed.raw.uid for parsed in observed.keys}
        published = {entry.uid for entry in self._published.keys} if self._published else self._seen
        self._seen = frozenset(alive | (self._seen & published))
        return observed

    def _repair_is_due(self) -> bool:
        now = time.monotonic()
        if self._repaired_at is not None and now - self._repaired_at < self._settings.full_interval:
            return False
        self._repaired_at = now
        return True

    # Carrying out

    async def _execute(self, plan: Plan, observed: Observed) -> Executed:
        executed = await execute(
            plan, self._objects, self._link, self._publisher, self._workers, self._settings, observed.ray
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
        errors: dict[tuple[Kind, str, str], str] = {}
        not_ours = set()
        if self._workers.failures():
            for parsed in observed.keys:
                if parsed.resource is None:
                    continue
                failure = self._workers.failure(("secret", parsed.raw.namespace, parsed.resource.secret_name))
                if failure is not None:
                    errors[parsed.raw.key] = describe(failure.error)
                    if isinstance(failure.error, NotOurs):
                        not_ours.add(parsed.raw.key)
        return Outcome(
            published=executed.published and observed.published is not None,
            ledger_error=executed.ledger_error or observed.ledger_error,
            ray_error=observed.ray_error,
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
        self._accounts = {entry.account: entry.plan for view in desired.views.keys for entry in view.entries[:1]}
        self._settled = (
            gateway_runs
            and written
            and outcome.published
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
            statuses={judgement.raw.key: judgement.status for judgement in judged},
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
        if not outcome.published:
            lines.append(f"ledger: {outcome.ledger_error}")
        if outcome.ray_error or self._link.put_error:
            lines.append(f"Ray: {outcome.ray_error or self._link.put_error}")
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

    def _ray_interval(self) -> float:
        return self._settings.fast_interval if not self._settled else min(10.0, self._settings.slow_interval)

    async def _housekeeping(self) -> None:
        """Closes abandoned holds, and reads usage for statuses now and then."""
        usage_at = 0.0
        while True:
            try:
                await _in_time(self._publisher.reap())
                accounts = self._accounts
                if accounts and time.monotonic() >= usage_at:
                    usage = await _in_time(self._publisher.usage(accounts))
                    usage_at = time.monotonic() + self._settings.usage_interval
                    if usage != self._usage:
                        self._usage = usage
                        self._wake.set()
            except (LedgerUnavailable, TimeoutError, OperatorError) as error:
                log.debug("housekeeping_failed", error=describe(error))
            except Exception:
                log.exception("housekeeping_failed")
            await asyncio.sleep(_REAP_INTERVAL)


def _leaving(observed: Observed, desired: Desired) -> bool:
    """Whether Ray is still ending an application."""
    there = observed.ray.apps.items() if observed.ray else ()
    return any(app.status == "DELETING" or (app.config and name not in desired.rollout.configs) for name, app in there)


def _next_at(observed: Observed, desired: Desired) -> int | None:
    """The next moment at which a status or a key changes although nobody changes an object."""
    moments = [desired.rollout.wake_at]
    for view in desired.views.keys:
        moments.append(view.rotate_at)
        moments += [entry.replaced_until for entry in view.entries]
        if view.current is not None and not view.expired:
            moments.append(view.current.expires_at)
    return min((moment for moment in moments if moment is not None and moment > observed.now), default=None)


async def _in_time(call: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(_LEDGER_TIMEOUT):
        return await call
