"""The `Objects` port over the API server, used by `reconcile`; `handlers` feeds it what Kopf's watch says.

Reads come from caches, writes go straight to the server. A watch can miss deletions while it is disconnected, so that
`run` lists everything at the start, every five minutes, and whenever Kopf had to begin its watch anew.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import structlog

from tollway_operator.cluster.api import Api, Expired, Object
from tollway_operator.cluster.cache import Cache, Entry
from tollway_operator.cluster.events import EventRecorder
from tollway_operator.cluster.keysecrets import KeySecrets
from tollway_operator.cluster.own import CopiedKeys, Memory, Source
from tollway_operator.cluster.secrets import Name, SecretReader, seconds, to_view
from tollway_operator.errors import Conflict, Gone, OperatorError
from tollway_operator.ports import Kind, Raw, SecretView, Snapshot

GROUP, VERSION = "tollway.dev", "v1alpha1"
PLURALS: Mapping[Kind, str] = {"ModelDeployment": "modeldeployments", "Plan": "plans", "ApiKey": "apikeys"}
WATCH_LABEL = "tollway.dev/watch"
WATCH_SELECTOR = f"{WATCH_LABEL}=true"
"""On every Secret of ours, and on those of users that shall count at once: one watch for both."""

Resource = Kind | Literal["Secret"]
RESOURCES: tuple[Resource, ...] = (*get_args(Kind), "Secret")

_RELIST = 300.0
_SETTLE = 1.0  # one more list after Kopf's, not one for each of its watches
_LONGEST_RETRY = 30.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Names:
    """The objects in the operator's own namespace."""

    namespace: str
    memory: str = "tollway-memory"
    providers: str = "tollway-providers"
    sources: str = "tollway-sources"


class ClusterObjects:
    """`namespaces` are those watched; empty: all."""

    def __init__(self, api: Api, namespaces: tuple[str, ...], names: Names) -> None:
        self.changed = asyncio.Event()
        self.listed = asyncio.Event()
        """Set once everything was listed: nobody should decide anything before."""
        self.trouble = "The first lists are not complete yet."
        """Why the caches may be behind; empty while all is well."""
        self._api = api
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self._objects: dict[Kind, Cache[Raw]] = {kind: Cache() for kind in PLURALS}
        self._secrets: Cache[SecretView] = Cache()
        self._written: dict[str, Mapping[str, Any]] = {}  # status last written, by uid
        self._relist = asyncio.Event()
        self._reader = SecretReader(api)
        self._keys = KeySecrets(api, self._secrets, f"{GROUP}/{VERSION}", {WATCH_LABEL: "true"}, self.changed.set)
        self._events = EventRecorder(api, f"{GROUP}/{VERSION}")
        self._memory = Memory(api, names.namespace, names.memory)
        self._providers = CopiedKeys(api, names.namespace, names.providers)
        self._sources = CopiedKeys(api, names.namespace, names.sources)

    # -- what the watch and the lists say

    def event(self, resource: Resource, type_: str | None, body: Object) -> None:
        """One event of Kopf's watch: a type of None is its initial list."""
        meta = body["metadata"]
        if type_ == "DELETED" or "deletionTimestamp" in meta:
            self._drop(resource, meta["uid"], int(meta["resourceVersion"]))
        else:
            self._put(resource, body)

    def relist(self) -> None:
        """Kopf lost track of changes: look at everything again, soon."""
        self._relist.set()

    def _put(self, resource: Resource, body: Object) -> None:
        meta = body["metadata"]
        uid, version = meta["uid"], int(meta["resourceVersion"])
        cache: Cache[Any] = self._secrets if resource == "Secret" else self._objects[resource]
        if not cache.lacks(uid, version):
            return
        if resource == "Secret":
            view = to_view(body)
            before = self._secrets.by_uid(uid)
            news = self._secrets.put(Entry(uid, view.namespace, view.name, version, view))
            if news and (before is None or before.value != view):
                self.changed.set()
            return
        raw = to_raw(resource, body)
        known = self._objects[resource].by_uid(uid)
        names = frozenset(_references(raw))
        news = self._objects[resource].put(Entry(uid, raw.namespace, raw.name, version, raw, names))
        if news and (known is None or self._differs(known.value, raw)):
            self.changed.set()

    def _differs(self, before: Raw, after: Raw) -> bool:
        """Whether a pass could decide otherwise: our own status writes come back as changes, too."""
        if (before.generation, before.labels) != (after.generation, after.labels):
            return True
        return after.status not in (before.status, self._written.get(after.uid))

    def _drop(self, resource: Resource, uid: str, version: int) -> None:
        cache: Cache[Any] = self._secrets if resource == "Secret" else self._objects[resource]
        self._written.pop(uid, None)
        if cache.drop(uid, version):
            self.changed.set()

    # -- in the background

    async def run(self) -> None:
        """Keeps the caches complete; ends only by being cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_listed())
            group.create_task(self._keep_read())

    async def _keep_listed(self) -> None:
        delay = 0.5
        while True:
            self._relist.clear()
            try:
                for resource in RESOURCES:
                    for scope in self._scopes:
                        await self._list(resource, scope)
            except OperatorError as error:
                if self.trouble != str(error):
                    _log.warning("list_failed", error=str(error))
                self.trouble = str(error)
                delay = min(delay * 2, _LONGEST_RETRY)
                wait = delay
            else:
                self.trouble, delay, wait = "", 0.5, _RELIST
                if not self.listed.is_set():
                    self.listed.set()
                    self.changed.set()
            try:
                async with asyncio.timeout(wait):
                    await self._relist.wait()
                await asyncio.sleep(_SETTLE)
            except TimeoutError:
                pass

    async def _list(self, resource: Resource, scope: str | None) -> None:
        listed: set[str] = set()
        version = 0
        try:
            async for page in self._api.pages(*list_path(resource, scope)):
                version = page.version
                for item in page.items:
                    if "deletionTimestamp" not in item["metadata"]:
                        listed.add(item["metadata"]["uid"])
                        self._put(resource, item)
        except Expired:
            return await self._list(resource, scope)
        cache: Cache[Any] = self._secrets if resource == "Secret" else self._objects[resource]
        for uid in cache.absent(listed, version, scope):
            self._drop(resource, uid, version)
        return None

    async def _keep_read(self) -> None:
        while True:
            await self._reader.due()
            if await self._reader.refresh():
                self.changed.set()

    # -- the port

    def begin(self) -> None:
        """This replica leads from now on: what another one may have written meanwhile is read again."""
        self._written.clear()
        self._memory.forget()
        self._providers.forget()
        self._sources.forget()

    async def snapshot(self) -> Snapshot:
        memory = await self._memory.load()
        objects = tuple(chain.from_iterable(cache.values.values() for cache in self._objects.values()))
        watched = dict(self._secrets.values)
        named = frozenset[Name]().union(*(cache.names for cache in self._objects.values()))
        read = await self._reader.views(named - watched.keys())
        return Snapshot(objects, {**read, **watched}, memory, self.listed.is_set())

    async def ensure_key(self, owner: Raw, secret_name: str, base_url: str) -> None:
        await self._keys.ensure(owner, secret_name, base_url)

    async def rotate_key(self, owner: Raw, secret_name: str) -> None:
        await self._keys.rotate(owner, secret_name)

    async def delete_key(self, namespace: str, secret_name: str, uid: str) -> None:
        await self._keys.delete(namespace, secret_name, uid)

    async def write_status(self, target: Raw, status: Mapping[str, Any]) -> None:
        cache = self._objects[target.kind]
        entry = cache.by_uid(target.uid)
        if entry is None:
            raise Gone(f"{target.kind} {target.namespace}/{target.name} is no longer there.")
        patch = merge_patch(entry.value.status, status)
        if not patch:
            return
        self._written[target.uid] = status  # before the answer, which the watch may overtake
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{target.namespace}/{PLURALS[target.kind]}/{target.name}/status"
        body = {"metadata": {"resourceVersion": entry.value.resource_version}, "status": patch}
        try:
            answer = await self._api.merge(path, body)
        except Conflict as error:
            # The watch brings the newer state, and with it the next pass.
            raise Conflict(f"{target.kind} {target.namespace}/{target.name} changed meanwhile.") from error
        self._put(target.kind, answer)

    async def record_event(self, target: Raw, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        await self._events.record(target, type_, reason, message)

    async def remember(self, memory: Mapping[str, str]) -> None:
        await self._memory.store(memory)

    async def sync_provider_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._providers.sync(await self._copies(wanted))

    async def sync_source_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._sources.sync(await self._copies(wanted))

    async def _copies(self, wanted: Mapping[str, tuple[str, str, str]]) -> dict[str, Source]:
        views = (await self.snapshot()).secrets
        sources: dict[str, Source] = {}
        for file, (namespace, name, key) in wanted.items():
            view = views.get((namespace, name))
            value = view.values.get(key) if view else None
            sources[file] = Source(namespace, name, key, value.sha256 if value else None)
        return sources


def list_path(resource: Resource, scope: str | None) -> tuple[str, str]:
    """The path of a resource's list, and its label selector."""
    middle = "" if scope is None else f"/namespaces/{scope}"
    if resource == "Secret":
        return f"/api/v1{middle}/secrets", WATCH_SELECTOR
    return f"/apis/{GROUP}/{VERSION}{middle}/{PLURALS[resource]}", ""


def to_raw(kind: Kind, body: Object) -> Raw:
    meta = body["metadata"]
    return Raw(
        kind=kind,
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        created=seconds(meta["creationTimestamp"]),
        resource_version=meta["resourceVersion"],
        labels=meta.get("labels") or {},
        spec=body.get("spec") or {},
        status=body.get("status") or {},
    )


def merge_patch(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch from one object to the other; lists are replaced whole. Empty if they are equal."""
    patch: dict[str, Any] = {key: None for key in current if key not in wanted}
    for key, value in wanted.items():
        before = current.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif key not in current or before != value:
            patch[key] = value
    return patch


def _references(raw: Raw) -> Iterator[Name]:
    """The user's Secrets that an object names, in its own namespace. The spec is not yet validated."""
    for place in (raw.spec, raw.spec.get("remote"), raw.spec.get("source")):
        reference = place.get("secretRef") if isinstance(place, Mapping) else None
        if isinstance(reference, Mapping) and isinstance(reference.get("name"), str):
            yield raw.namespace, reference["name"]
