"""Which config each application should run now: the new one, or the last good one if that has failed; and what must
wait for its requests to end. Called by `desired`.

Ray doesn't roll back by itself: of a config that can't start, the old replicas serve on (surge) until something
changes. Putting the last good config back makes the application whole again, and the failure is remembered so that
it isn't tried in a circle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tollway_operator.builders.applications import App, Config, fingerprint, same
from tollway_operator.builders.pools import Demand, together
from tollway_operator.builders.states import last_line
from tollway_operator.memo import Clock, Memo
from tollway_operator.observed import Drain, Failed, Good, Memory, Observed, Tried
from tollway_operator.ports import AppStatus
from tollway_serving.contract.applications import MODEL_APP_PREFIX

T = TypeVar("T")

_RETRY_AFTER = 300  # seconds until a config that failed, with no good one to go back to, is tried again
_LONGEST_RETRY = 3_600
_CATALOGUE_DELAY = 2  # seconds after a withdrawal in which a gateway may still take a request for the model
_UNKNOWN_TOTAL = 3_600
_LONGEST_WORDS = 600


@dataclass(frozen=True, slots=True)
class Rollout:
    """The application set to have, and what to keep in mind. `rolled_back` and `failures` are by application."""

    configs: Mapping[str, Config] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    rolled_back: Mapping[str, Failed] = field(default_factory=dict)
    failures: Mapping[str, Failed] = field(default_factory=dict)  # nothing good to go back to
    demands: tuple[Demand, ...] = ()  # pods of what shall run: of the version before where that is it
    draining: frozenset[str] = frozenset()
    restarting: frozenset[str] = frozenset()  # left out of one set so that Ray starts them afresh
    wake_at: int | None = None  # when a retry is due


def roll_out(apps: Iterable[App], observed: Observed, memo: Memo) -> Rollout:
    """The set for a Ray that answers; an unreachable one gets nothing, so its memory stays as it is."""
    ray = observed.ray
    wanted = {app.name: app for app in apps}
    if ray is None:
        return Rollout(memory=observed.memory, demands=_demands(wanted.values(), observed.memory))
    good, failed, tried = dict(observed.memory.good), dict(observed.memory.failed), dict(observed.memory.tried)
    steps = memo.each(
        _step,
        wanted,
        wanted.values(),
        [ray.apps.get(name) for name in wanted],
        [good.get(name) for name in wanted],
        [failed.get(name) for name in wanted],
        [tried.get(name) for name in wanted],
        [observed.last_words.get(name, "") for name in wanted],
        now=observed.now,
    )
    configs: dict[str, Config] = {}
    rolled_back: dict[str, Failed] = {}
    failures: dict[str, Failed] = {}
    restarting: set[str] = set()
    wakes: list[int] = []
    for name, step in zip(wanted, steps, strict=True):
        if step.config is not None:
            configs[name] = step.config
        if step.good is not None:
            good[name] = step.good
        _keep(failed, name, step.failed)
        _keep(tried, name, step.tried)
        if step.failure is not None:
            (rolled_back if step.back else failures)[name] = step.failure
        if step.restart:
            restarting.add(name)
        if step.retry_at is not None:
            wakes.append(step.retry_at)

    draining, drain = _drain(wanted, observed, configs)
    gone = {*good, *failed, *tried}.difference(wanted, draining) if observed.complete else set()
    for name in gone:
        for kept in (good, failed, tried):
            kept.pop(name, None)
    memory = Memory(good, failed, drain, tried)
    return Rollout(
        configs=configs,
        memory=memory,
        rolled_back=rolled_back,
        failures=failures,
        demands=_demands(wanted.values(), memory),
        draining=frozenset(draining),
        restarting=frozenset(restarting),
        wake_at=min(wakes, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """What becomes of one application."""

    config: Config | None = None  # to run now; None: nothing
    good: Good | None = None
    failed: Failed | None = None  # to keep in mind
    tried: Tried | None = None  # likewise
    failure: Failed | None = None  # that counts now
    back: bool = False  # the version before runs because of it
    restart: bool = False
    retry_at: int | None = None


def _step(
    app: App,
    there: AppStatus | None,
    good: Good | None,
    failed: Failed | None,
    tried: Tried | None,
    words: str,
    *,
    clock: Clock,
) -> _Step:
    if app.config is None:
        kept = there.config if there is not None and there.config is not None else None
        return _Step(kept if kept is not None or good is None else good.config, good, failed, tried)
    failure = failed
    if failure is not None and failure.fingerprint != app.mark:
        failure = None  # the object has changed: tried anew
    if there is not None and same(there.config, app.config):
        tried = None
        if there.status == "RUNNING":
            failure = None
            now = (app.generation, app.demand)
            if good is None or (good.generation, good.demand) != now or not same(good.config, app.config):
                good = Good(app.config, app.generation, app.demand)
        elif there.status == "DEPLOY_FAILED" and (failure is None or _has_news(failure, there)):
            failure = _failure(there, app.mark, failure, words, clock)
        elif there.status != "DEPLOY_FAILED" and (good is None or not same(good.config, app.config)):
            tried = Tried(app.mark, app.generation, app.demand)
    elif there is not None and there.status == "RUNNING" and there.config is not None and tried is not None:
        if fingerprint(there.config) == tried.fingerprint:
            good = Good(there.config, tried.generation, tried.demand)
        tried = None
    if failure is None:
        return _Step(app.config, good, tried=tried)
    if good is not None and not same(good.config, app.config):
        return _Step(good.config, good, failure, tried, failure, back=True)
    retry_at = failure.at + min(_LONGEST_RETRY, _RETRY_AFTER * 2 ** (failure.tries - 1))
    is_down = there is not None and there.status == "DEPLOY_FAILED" and not there.running_replicas
    if is_down and clock.reached(retry_at):
        again = Failed(app.mark, failure.message, clock.now, failure.tries + 1)
        return _Step(None, good, again, None, failure, restart=True)
    return _Step(app.config, good, failure, tried, failure, retry_at=retry_at)


def _keep(kept: dict[str, T], name: str, value: T | None) -> None:
    if value is None:
        kept.pop(name, None)
    else:
        kept[name] = value


def _demands(apps: Iterable[App], memory: Memory) -> tuple[Demand, ...]:
    """Pods of what is to run: the last good version's, where the written one has failed or isn't accepted."""
    found = []
    for app in apps:
        last, failure = memory.good.get(app.name), memory.failed.get(app.name)
        demand = app.demand
        if app.config is None:
            demand = last.demand if last is not None else None
        elif failure is not None and failure.fingerprint == app.mark and last is not None:
            demand = last.demand or app.demand
        if demand is not None:
            found.append(demand)
    return together(found)


def _has_news(failure: Failed, there: AppStatus) -> bool:
    """Whether this is a later failure than the one on record."""
    return there.last_deployed > failure.at + 1 and bool(last_line(there.message))


def _failure(there: AppStatus, mark: str, before: Failed | None, words: str, clock: Clock) -> Failed:
    message = last_line(there.message) or "Ray gives no reason"
    words = " | ".join(words.splitlines())[-_LONGEST_WORDS:]
    if words:
        message += f"; its last lines: {words}"
    return Failed(mark, message, before.at if before else clock.now, before.tries if before else 1)


def _drain(
    wanted: Mapping[str, App], observed: Observed, configs: dict[str, Config]
) -> tuple[set[str], Mapping[str, Drain]]:
    """Adds to `configs` what Ray has beside the wanted applications and must keep for now."""
    assert observed.ray is not None  # noqa: S101 - the caller has looked
    draining: set[str] = set()
    drain: dict[str, Drain] = {}
    others = [name for name in observed.ray.apps if name not in wanted]
    published = {entry.target.url for entry in observed.published.models} if others and observed.published else None
    for name in others:
        there = observed.ray.apps[name]
        if there.config is None or there.status == "DELETING":
            continue
        if not name.startswith(MODEL_APP_PREFIX):
            configs[name] = there.config  # somebody else's application in the same Ray
            continue
        record = observed.memory.drain.get(name) or Drain(observed.now, observed.now + _total(there))
        if not observed.complete or not _drained(there, record, observed, published):
            configs[name] = there.config
            draining.add(name)
            drain[name] = record
    return draining, drain


def _drained(there: AppStatus, record: Drain, observed: Observed, published: set[str] | None) -> bool:
    if published is None or observed.holds is None:
        return False  # the ledger doesn't answer: nobody knows what still runs
    route = str(there.config.get("route_prefix")) if there.config else ""
    if any(url.endswith(f"{route}/v1") for url in published):
        return False  # not withdrawn yet
    if observed.now < record.since + _CATALOGUE_DELAY:
        return False
    args = there.config.get("args") if there.config else None
    model_id = args.get("model_id") if isinstance(args, Mapping) else None
    return observed.now >= record.until or not observed.holds.get(str(model_id), 0)


def _total(there: AppStatus) -> int:
    """The longest request of an application whose object is gone, from its own config."""
    deployments = there.config.get("deployments") if there.config else None
    for deployment in deployments or ():
        if isinstance(deployment, Mapping) and "graceful_shutdown_timeout_s" in deployment:
            return int(deployment["graceful_shutdown_timeout_s"])
    return _UNKNOWN_TOTAL
