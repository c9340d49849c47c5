"""Carries out a plan, in its order and without thinking. Called by `reconcile`; every decision was made in `plan`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from tollway_operator.errors import Gone, NotOurs, OperatorError
from tollway_operator.observed import write_memory
from tollway_operator.plan import KeyAction, Plan
from tollway_operator.ports import Objects, RayStatus
from tollway_operator.ray_link import Put, RayLink
from tollway_operator.settings import Settings
from tollway_operator.status import Judgement
from tollway_operator.workers import Workers
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import Publisher

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT = 15.0
_KEYS_BUDGET = 0.5  # seconds that one pass spends on starting writes; the rest are the next pass's
_STATUS_BUDGET = 1.0


@dataclass(frozen=True, slots=True)
class Executed:
    """`published`: the ledger has this pass's catalogue. `deferred`: something waits for the next pass."""

    published: bool
    ledger_error: str = ""
    remembered: bool = True
    deferred: bool = False


async def execute(
    plan: Plan,
    objects: Objects,
    ray: RayLink,
    publisher: Publisher,
    workers: Workers,
    settings: Settings,
    there: RayStatus | None,
    took: float = 0.0,
) -> Executed:
    """Revocations first, then everything else that gateways must know, in one transaction; then Secrets, memory and
    applications. Errors are kept by the workers and the link, and come back in the next pass's statuses. `took` is how
    many seconds it took to decide: of a slow pass the writes may take as long, or it would be mostly deciding."""
    published, ledger_error = True, ""
    if plan.publish is not None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await publisher.publish(plan.publish)
        except Exception as error:
            # Whatever it is (also a conflict with another installation's ids), Secrets and applications must go on.
            published, ledger_error = False, describe(error)
            log.warning("not_published", error=ledger_error)
    deferred = False
    deadline = asyncio.get_running_loop().time() + max(_KEYS_BUDGET, took)
    for action in plan.keys:
        if not await _room(workers, deadline):
            deferred = True
            break
        workers.submit(key_of(action), _key_write(action, objects, settings))
    if plan.provider_keys is not None:
        wanted = plan.provider_keys
        workers.submit("provider_keys", lambda: objects.sync_provider_keys(wanted))
    if plan.source_keys is not None:
        loaders = plan.source_keys
        workers.submit("source_keys", lambda: objects.sync_source_keys(loaders))
    remembered = True
    if plan.remember is not None:
        try:
            await objects.remember(write_memory(plan.remember))
        except OperatorError as error:
            remembered = False
            log.warning("not_remembered", error=str(error))
    if plan.put is not None and there is not None:
        deferred = not ray.put(Put(plan.put, plan.changed_apps, there.apps)) or deferred
    return Executed(published, ledger_error, remembered, deferred)


async def write_statuses(
    judgements: Iterable[Judgement], objects: Objects, workers: Workers, took: float = 0.0
) -> bool:
    """Starts the writes of changed statuses, urgent ones first: the usage of thousands of keys must not stand before a
    new one's readiness. False if some must wait for the next pass. `took` as in `execute`."""
    deadline = asyncio.get_running_loop().time() + max(_STATUS_BUDGET, took)
    complete = True
    changed = [judgement for judgement in judgements if judgement.changed]
    for judgement in sorted(changed, key=lambda judgement: not judgement.urgent):
        if not await _room(workers, deadline):
            return False
        complete = workers.submit(status_key(judgement), _status_write(judgement, objects)) and complete
    return complete


async def _room(workers: Workers, deadline: float) -> bool:
    """Whether another write can start before the deadline; waits for that."""
    while not workers.free:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        await workers.room(left)
    return True


def key_of(action: KeyAction) -> tuple[str, str, str]:
    return ("secret", action.namespace, action.secret)


def status_key(judgement: Judgement) -> tuple[str, str]:
    return ("status", judgement.raw.uid)


def describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PUBLISH_TIMEOUT:.0f} s"
    if isinstance(error, LedgerUnavailable | OperatorError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _key_write(action: KeyAction, objects: Objects, settings: Settings) -> Callable[[], Awaitable[None]]:
    async def write() -> None:
        try:
            if action.owner is None:
                await objects.delete_key(action.namespace, action.secret, action.uid)
            elif action.verb == "rotate":
                await objects.rotate_key(action.owner, action.secret)
                await objects.record_event(action.owner, "Normal", "Rotated", "a fresh key is in its Secret")
            else:
                await objects.ensure_key(action.owner, action.secret, settings.base_url)
        except Gone:
            return
        except NotOurs:
            if action.owner is None:
                return
            raise

    return write


def _status_write(judgement: Judgement, objects: Objects) -> Callable[[], Awaitable[None]]:
    async def write() -> None:
        try:
            await objects.write_status(judgement.raw, judgement.status)
            for event in judgement.events:
                await objects.record_event(judgement.raw, event.type_, event.reason, event.message)
        except Gone:
            return

    return write
