"""The conditions of a ModelDeployment, one function a condition type. Called by `judge`."""

from typing import Any

from tollway_operator.builders.applications import same
from tollway_operator.builders.desired import Desired
from tollway_operator.builders.states import AppView
from tollway_operator.builders.views import ModelView
from tollway_operator.observed import Observed
from tollway_operator.platform import PoolStatus
from tollway_operator.ports import AppStatus
from tollway_operator.resources.conditions import (
    ModelAccepted,
    ModelDegraded,
    ModelProgressing,
    ModelReady,
    ModelScheduled,
)
from tollway_operator.status.conditions import Condition, Judgement, Outcome, reason, sentence, write

_WARN = (("Accepted", "False"), ("Scheduled", "False"), ("Degraded", "True"))
_TROUBLE = (
    ModelReady.IMAGE_PULL_FAILED,
    ModelReady.SOURCE_FAILED,
    ModelReady.ENGINE_CRASHED,
    ModelReady.UNREACHABLE,
)
_NO_PLACE = ("NoSuchAccelerator", "WaitingForNode", "QuotaExceeded")
_SOURCE_ERRORS = ("ModelMissingError", "SourceError")
"""Exception classes by which engines say that the weights are the matter."""


def judge_model(view: ModelView, observed: Observed, desired: Desired, outcome: Outcome) -> Judgement:
    app = desired.apps.get(view.app) if view.app else None
    there = observed.ray.apps.get(view.app) if observed.ray and view.app else None
    pool = _pool(view, observed)
    ready = _ready(view, app, desired, outcome, pool)
    progressing = _progressing(view, app, there, observed, desired)
    warn = list(_WARN)
    if ready.reason in _TROUBLE:
        warn.append(("Ready", "False"))
    conditions = (
        _accepted(view, outcome),
        _scheduled(view, app, pool),
        ready,
        _degraded(view, app, there, desired),
        progressing,
    )
    moving = progressing.reason.status == "True" or ready.reason is ModelReady.STARTING
    settled = not moving or (view.unscheduled is not None and app is not None and not app.ready)
    return write(view.parsed.raw, conditions, _fields(view, app, desired), observed.now, settled=settled, warn=warn)


def _accepted(view: ModelView, outcome: Outcome) -> Condition:
    if view.refused:
        return Condition("Accepted", reason(ModelAccepted, view.refused.reason), view.refused.message)
    if view.app is not None and view.app in outcome.refused_apps:
        return Condition("Accepted", ModelAccepted.INVALID_ARGS, f"Ray refuses it: {outcome.refused_apps[view.app]}")
    ignored = f"without effect here: {', '.join(view.ignored)}" if view.ignored else ""
    return Condition("Accepted", ModelAccepted.ACCEPTED, "; ".join(filter(None, (ignored, view.note))))


def _pool(view: ModelView, observed: Observed) -> PoolStatus:
    """The pods of its pool; nothing to say where pods aren't made for models."""
    there = observed.platform.pools.get(view.pool.name) if observed.platform and view.pool else None
    return there or PoolStatus()


def _scheduled(view: ModelView, app: AppView | None, pool: PoolStatus) -> Condition:
    if view.unscheduled:
        return Condition("Scheduled", reason(ModelScheduled, view.unscheduled.reason), view.unscheduled.message)
    if view.refused and not (app and app.ready):
        return Condition("Scheduled", ModelScheduled.NOT_NEEDED, "nothing has to be placed until it is accepted")
    if view.app is None:
        return Condition("Scheduled", ModelScheduled.NOT_NEEDED)
    if app is not None and app.state == "Asleep":
        return Condition("Scheduled", ModelScheduled.NOT_NEEDED)
    if pool.problem in _NO_PLACE and not _is_whole(app):
        return Condition("Scheduled", reason(ModelScheduled, pool.problem), pool.message)
    return Condition("Scheduled", ModelScheduled.SCHEDULED)


def _is_whole(app: AppView | None) -> bool:
    return app is not None and app.ready > 0 and app.ready >= app.wanted


def _ready(view: ModelView, app: AppView | None, desired: Desired, outcome: Outcome, pool: PoolStatus) -> Condition:
    if view.entry is None:
        return _not_accepted(view)
    if not outcome.published:
        return Condition("Ready", ModelReady.UNREACHABLE, f"gateways can't be told: {outcome.ledger_error}")
    if app is None:
        return Condition("Ready", ModelReady.READY)
    if outcome.ray_error:
        return Condition("Ready", ModelReady.UNREACHABLE, outcome.ray_error)
    kept = "the last accepted version serves" if view.refused else ""
    if app.state == "Ready":
        return Condition("Ready", ModelReady.READY, kept)
    if app.state == "Asleep":
        return Condition("Ready", ModelReady.ASLEEP, kept)
    failure = desired.rollout.failures.get(view.app) if view.app else None
    if failure is not None:
        return Condition("Ready", _failure_reason(failure.message), failure.message)
    if view.unscheduled:
        return Condition("Ready", ModelReady.STARTING, f"it has no place yet: {view.unscheduled.message}")
    if pool.problem == "ImagePullFailed":
        return Condition("Ready", ModelReady.IMAGE_PULL_FAILED, pool.message)
    if pool.problem is not None:
        said = (
            f"its pod fails: {pool.message}" if pool.problem == "PodFailed" else f"it has no place yet: {pool.message}"
        )
        return Condition("Ready", ModelReady.STARTING, said)
    if view.refused and app.state == "Starting" and not app.wanted:
        return _not_accepted(view)
    if app.state == "Unavailable":
        return Condition("Ready", _failure_reason(app.message), app.message)
    return Condition("Ready", ModelReady.STARTING, app.message)


def _not_accepted(view: ModelView) -> Condition:
    """Says why once more: columns and `kubectl wait` show Ready alone."""
    return Condition("Ready", ModelReady.NOT_ACCEPTED, view.refused.message if view.refused else "")


def _failure_reason(message: str) -> ModelReady:
    raised = message.partition(":")[0].rpartition(".")[2]
    return ModelReady.SOURCE_FAILED if raised in _SOURCE_ERRORS else ModelReady.ENGINE_CRASHED


def _degraded(view: ModelView, app: AppView | None, there: AppStatus | None, desired: Desired) -> Condition:
    found: list[tuple[ModelDegraded, str]] = []
    back = desired.rollout.rolled_back.get(view.app) if view.app else None
    if back is not None:
        found.append((ModelDegraded.ROLLED_BACK, f"the new version didn't come up: {back.message}"))
    if app is not None and there is not None and 0 < app.ready < app.wanted and there.status == "UNHEALTHY":
        found.append((ModelDegraded.FEWER_REPLICAS, f"{app.ready} of {app.wanted} replicas answer"))
    found += [(ModelDegraded.FALLBACK_NOT_USABLE, problem.message) for problem in view.fallbacks_lost]
    found += [(ModelDegraded.ALIAS_TAKEN, problem.message) for problem in view.aliases_lost]
    if not found:
        return Condition("Degraded", ModelDegraded.AS_EXPECTED)
    return Condition("Degraded", found[0][0], sentence(message for _, message in found))


def _progressing(
    view: ModelView, app: AppView | None, there: AppStatus | None, observed: Observed, desired: Desired
) -> Condition:
    name = view.app
    if view.refused:
        return Condition("Progressing", ModelProgressing.ON_HOLD, "nothing changes until it is accepted")
    if view.unscheduled:
        return Condition("Progressing", ModelProgressing.ON_HOLD, "nothing changes until it has a place")
    if name is None:
        return Condition("Progressing", ModelProgressing.UP_TO_DATE)
    if name in desired.rollout.failures:
        return Condition("Progressing", ModelProgressing.FAILED, "it is tried again after a pause")
    wanted = desired.rollout.configs.get(name)
    moving = there is None or wanted is None or not same(there.config, wanted) or there.status != "RUNNING"
    if name in desired.rollout.rolled_back:
        if moving:
            return Condition("Progressing", ModelProgressing.ROLLING_BACK)
        return Condition("Progressing", ModelProgressing.FAILED, "the last good version serves")
    if moving:
        pool = _pool(view, observed)
        if app is not None and app.state == "Ready" and pool.problem in _NO_PLACE:
            return Condition("Progressing", ModelProgressing.NO_ROOM, f"the version before serves: {pool.message}")
        return Condition("Progressing", ModelProgressing.DEPLOYING)
    if app is not None and app.ready != app.wanted:
        return Condition("Progressing", ModelProgressing.SCALING, f"{app.ready} of {app.wanted} replicas")
    if observed.platform is not None and observed.platform.upgrade:
        return Condition("Progressing", ModelProgressing.PLATFORM_UPGRADE, observed.platform.upgrade)
    return Condition("Progressing", ModelProgressing.UP_TO_DATE)


def _fields(view: ModelView, app: AppView | None, desired: Desired) -> dict[str, Any]:
    raw = view.parsed.raw
    serving: int | None = None
    if view.app is None or view.base is not None:
        serving = raw.generation if not view.refused else raw.status.get("servingGeneration")
    elif view.app in desired.rollout.memory.good:
        serving = desired.rollout.memory.good[view.app].generation
    return {
        "modelId": view.model_id,
        "servingGeneration": serving,
        "pool": view.pool.name if view.pool is not None else None,
        "replicas": {"desired": app.wanted, "ready": app.ready} if app is not None else None,
    }
