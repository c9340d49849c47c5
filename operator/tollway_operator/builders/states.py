"""How a model's application does, in the words of the catalogue. Called by `desired` and by `status`."""

import re
from dataclasses import dataclass

from tollway_operator.ports import AppStatus
from tollway_serving.contract.catalogue import ModelState

_MODULE = re.compile(r"^(?:[A-Za-z_]\w*\.)+(?=[A-Z]\w*:)")
"""Of an exception's class, before its name."""


@dataclass(frozen=True, slots=True)
class AppView:
    """`state` is what gateways are told; `ready` counts replicas that answer, `wanted` those that should."""

    state: ModelState
    message: str = ""
    ready: int = 0
    wanted: int = 0


def app_view(app: AppStatus | None, before: ModelState | None, answers: bool) -> AppView:
    """`app` is what Ray has of it, `before` the state last published: it stays where Ray doesn't say. A Ray that
    doesn't answer says nothing about replicas, and while Serve builds a new version it reports no deployment at all
    though the old one serves on."""
    if not answers:
        return AppView(before or "Starting")
    if app is None or app.status == "NOT_STARTED":
        return AppView("Starting")
    ready, wanted = app.running_replicas, app.total_replicas
    if ready:
        return AppView("Ready", ready=ready, wanted=wanted)
    if app.status == "RUNNING":
        if not wanted:
            return AppView("Asleep", wanted=wanted)
        return AppView("Starting", wanted=wanted)
    if app.status == "DEPLOYING":
        building = not app.replica_states and not wanted
        if building and before == "Ready":
            return AppView("Ready", ready=ready, wanted=wanted)
        return AppView("Starting", message=last_line(app.message), wanted=wanted)
    return AppView("Unavailable", last_line(app.message), wanted=wanted)


def last_line(text: str) -> str:
    """What an exception says stands in a traceback's last line; its class without the module."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _MODULE.sub("", lines[-1])[:500] if lines else ""


def failed(app: AppStatus | None) -> bool:
    return app is not None and app.status == "DEPLOY_FAILED"
