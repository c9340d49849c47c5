"""The conditions of a ModelDeployment, one function a condition type. Called by `judge`."""

from dataclasses import dataclass, field
from typing import Any

from tollway_operator.builders.applications import Config, same
from tollway_operator.builders.states import AppView
from tollway_operator.builders.views import ModelView
from tollway_operator.memo import Clock
from tollway_operator.observed import Failed
from tollway_operator.platform import PoolStatus
from tollway_operator.ports import AppStatus
from tollway_operator.resources.conditions import (
    ModelAccepted,
    ModelDegraded,
    ModelProgressing,
    ModelReady,
    ModelScheduled,
)
from tollway_operator.status.conditions import Condition, Judgement, Reach, reason, sentence, write

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


@dataclass(frozen=True, slots=True)
class Course:
    """A model's application: what Ray says of it (`there`, and `app` in the catalogue's words), what the rollout does
    with it, and its pods."""

    app: AppView | None = None
    there: AppStatus | None = None
    wanted: Config | None = None
    back: Failed | None = None  # it runs the version before because of this failure
    failure: Failed | None = None  # nothing good to go back to
    serving: int | None = None  # the generation that was last seen running
    refusal: str = ""  # Ray would not even take its config
    pool: PoolStatus = field(default_factory=PoolStatus)


def judge_model(view: ModelView, course: Course, reach: Reach, upgrade: str, *, clock: Clock) -> Judgement:
    """`upgrade`: what a second Ray cluster that comes up still waits for."""
    app = course.app
    ready = _ready(view, course, reach)
    progressing = _progressing(view, course, upgrade)
    warn = list(_WARN)
    if ready.reason in _TROUBLE:
        warn.append(("Ready", "False"))
    conditions = (
        _accepted(view, course),
        _scheduled(view, app, course.pool),
        ready,
        _degraded(view, course),
        progressing,
    )
    moving = progressing.reason.status == "True" or ready.reason is ModelReady.STARTING
    settled = not moving or (view.unscheduled is not None and app is not None and not app.ready)
    return write(view.parsed.raw, conditions, _fields(view, course), clock, settled=settled, warn=warn)


def _accepted(view: ModelView, course: Course) -> Condition:
    if view.refused:
        return Condition("Accepted", reason(ModelAccepted, view.refused.reason), view.refused.message)
    if course.refusal:
        return Condition("Accepted", ModelAccepted.INVALID_ARGS, f"Ray refuses it: {course.refusal}")
    ignored = f"without effect here: {', '.join(view.ignored)}" if view.ignored else ""
    return Condition("Accepted", ModelAccepted.ACCEPTED, "; ".join(filter(None, (ignored, view.note))))


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


def _ready(view: ModelView, course: Course, reach: Reach) -> Condition:
    app, failure, pool = course.app, course.failure, course.pool
    if view.entry is None:
        return _not_accepted(view)
    if not reach.published:
        return Condition("Ready", ModelReady.UNREACHABLE, f"gateways can't be told: {reach.ledger_error}")
    if app is None:
        return Condition("Ready", ModelReady.READY)
    if reach.ray_error:
        return Condition("Ready", ModelReady.UNREACHABLE, reach.ray_error)
    kept = "the last accepted version serves" if view.refused else ""
    if app.state == "Ready":
        return Condition("Ready", ModelReady.READY, kept)
    if app.state == "Asleep":
        return Condition("Ready", ModelReady.ASLEEP, kept)
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


def _degraded(view: ModelView, course: Course) -> Condition:
    app, there = course.app, course.there
    found: list[tuple[ModelDegraded, str]] = []
    if course.back is not None:
        found.append((ModelDegraded.ROLLED_BACK, f"the new version didn't come up: {course.back.message}"))
    if course.failure is not None and _others_serve(course):
        message = f"the new version didn't come up, what answers is what was up before: {course.failure.message}"
        found.append((ModelDegraded.ROLLED_BACK, message))
    if app is not None and there is not None and 0 < app.ready < app.wanted and there.status == "UNHEALTHY":
        found.append((ModelDegraded.FEWER_REPLICAS, f"{app.ready} of {app.wanted} replicas answer"))
    found += [(ModelDegraded.FALLBACK_NOT_USABLE, problem.message) for problem in view.fallbacks_lost]
    found += [(ModelDegraded.ALIAS_TAKEN, problem.message) for problem in view.aliases_lost]
    if not found:
        return Condition("Degraded", ModelDegraded.AS_EXPECTED)
    return Condition("Degraded", found[0][0], sentence(message for _, message in found))


def _others_serve(course: Course) -> bool:
    """Of a version that failed: replicas answer all the same."""
    return course.there is not None and course.there.status == "DEPLOY_FAILED" and course.there.running_replicas > 0


def _progressing(view: ModelView, course: Course, upgrade: str) -> Condition:
    app, there, wanted = course.app, course.there, course.wanted
    if view.refused:
        return Condition("Progressing", ModelProgressing.ON_HOLD, "nothing changes until it is accepted")
    if view.unscheduled:
        return Condition("Progressing", ModelProgressing.ON_HOLD, "nothing changes until it has a place")
    if view.app is None:
        return Condition("Progressing", ModelProgressing.UP_TO_DATE)
    if course.failure is not None and (there is None or there.status == "DEPLOY_FAILED"):
        next_try = "once the object changes" if _others_serve(course) else "after a pause"
        return Condition("Progressing", ModelProgressing.FAILED, f"it is tried again {next_try}")
    moving = there is None or wanted is None or not same(there.config, wanted) or there.status != "RUNNING"
    if course.back is not None:
        if moving:
            return Condition("Progressing", ModelProgressing.ROLLING_BACK)
        return Condition("Progressing", ModelProgressing.FAILED, "the last good version serves")
    if moving:
        pool = course.pool
        if app is not None and app.state == "Ready" and pool.problem in _NO_PLACE:
            return Condition("Progressing", ModelProgressing.NO_ROOM, f"the version before serves: {pool.message}")
        return Condition("Progressing", ModelProgressing.DEPLOYING)
    if app is not None and app.ready != app.wanted:
        return Condition("Progressing", ModelProgressing.SCALING, f"{app.ready} of {app.wanted} replicas")
    if upgrade:
        return Condition("Progressing", ModelProgressing.PLATFORM_UPGRADE, upgrade)
    return Condition("Progressing", ModelProgressing.UP_TO_DATE)


def _fields(view: ModelView, course: Course) -> dict[str, Any]:
    raw, app, serving = view.parsed.raw, course.app, course.serving
    if view.app is None or view.base is not None:
        serving = raw.generation if not view.refused else raw.status.get("servingGeneration")
    return {
        "modelId": view.model_id,
        "servingGeneration": serving,
        "pool": view.pool.name if view.pool is not None else None,
        "replicas": {"desired": app.wanted, "ready": app.ready} if app is not None else None,
    }
