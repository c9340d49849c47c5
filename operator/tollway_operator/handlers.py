"""What Kopf calls: every event goes into the caches of `cluster`, and nothing else happens here. Used by `main`.

Kopf never tries an event handler again and diffs each body for handlers we don't have: so no work is done in one, and
its storages do nothing. No finalizers, no annotations: an operator that is away blocks nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import kopf

from tollway_operator.cluster.objects import GROUP, PLURALS, VERSION, WATCH_SELECTOR, ClusterObjects, Resource

_BACKOFFS = (1, 1, 2, 3, 5, 8, *[10] * 8640)
"""Seconds between tries of a watch that fails: a day of them, as Kopf ends the operator after the last."""


def register(registry: kopf.OperatorRegistry, objects: ClusterObjects) -> None:
    """Watches our three kinds and the Secrets that carry the watch label."""

    def watch(resource: Resource, *selector: str) -> None:
        @kopf.on.event(*selector, registry=registry, id=resource)
        async def enqueue(event: kopf.RawEvent, **_: Any) -> None:
            objects.event(resource, event["type"], dict(event["object"]))

    for kind, plural in PLURALS.items():
        watch(kind, GROUP, VERSION, plural)
    watch("Secret", "v1", "secrets")


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.label_selectors["v1", "secrets"] = WATCH_SELECTOR  # else all Secrets would be watched
    settings.scanning.disabled = True  # no rights on CRDs and namespaces needed; main waits for the CRDs
    settings.posting.enabled = False
    settings.networking.error_backoffs = _BACKOFFS
    settings.networking.request_timeout = 60.0
    settings.queueing.exit_timeout = 0.5
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    def fetch(self, *, key: Any, body: kopf.Body) -> kopf.ProgressRecord | None:
        return None

    def store(self, *, key: Any, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class Watches:
    """Looks at what Kopf asks of the API server (see `Access.session`): `trouble` is what the last answers say."""

    def __init__(self, objects: ClusterObjects) -> None:
        self._objects = objects
        self._listed: set[str] = set()
        self._failing: dict[str, int] = {}

    def answered(self, path: str, is_watch: bool, status: int) -> None:
        if status < 300:
            self._failing.pop(path, None)
            if not is_watch and path in self._listed:
                self._objects.relist()  # what was deleted since its last watch, Kopf will not say
            if not is_watch:
                self._listed.add(path)
        elif status != 410:
            self._failing[path] = status

    @property
    def trouble(self) -> str:
        found: Mapping[str, int] = self._failing
        return "; ".join(f"cannot watch {path}: the API server answers {status}" for path, status in found.items())
