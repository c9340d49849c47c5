"""Objects in the operator's own namespace, kept for `objects`: its memory, and copies of users' Secrets for pods."""

import asyncio
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tollway_operator.cluster.api import AlreadyExists, Api, Object
from tollway_operator.cluster.secrets import SECRETS, encode, key_of
from tollway_operator.errors import Gone, Refused
from tollway_operator.keys import MANAGED_BY, describe

_LABELS = {MANAGED_BY: "tollway"}
_VERIFY = 300.0  # how often a Secret of copies is compared again although nothing of ours changed
_LARGEST = 1_000_000  # bytes of a ConfigMap; etcd takes little more
_PARTS = 8  # ConfigMaps: NAME, NAME-1 and so on, which the operator's Role lists


class Memory:
    """A mapping of text that survives restarts. In several ConfigMaps, because one has room for some hundred models
    only, and so that a change writes a small one."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._names = (name, *(f"{name}-{number}" for number in range(1, _PARTS)))
        self._parts: list[dict[str, str]] | None = None  # as they are in the cluster
        self._known: Mapping[str, str] = {}

    def forget(self) -> None:
        self._parts = None

    async def load(self) -> Mapping[str, str]:
        if self._parts is None:
            self._parts = [await self._read(name) for name in self._names]
            self._known = {key: value for part in self._parts for key, value in part.items()}
        return self._known

    async def store(self, memory: Mapping[str, str]) -> None:
        """Refused if it is more than the ConfigMaps hold."""
        if await self.load() == memory:
            return
        before, after = self._parts or [], _split(memory)
        for part in after:
            size = sum(len(key) + len(value.encode()) for key, value in part.items())
            if size > _LARGEST:
                raise Refused(f"A part of the operator's memory has {size} bytes, more than a ConfigMap's {_LARGEST}.")
        self._parts = None  # whatever happens to a write, read again before the next one
        # Backwards: what an older version kept in the first one alone is in its place before it goes there.
        for name, old, new in reversed(list(zip(self._names, before, after, strict=True))):
            changes: dict[str, str | None] = {key: value for key, value in new.items() if old.get(key) != value}
            changes.update((key, None) for key in old if key not in new)
            if changes:
                await _write(self._api, self._collection, name, "ConfigMap", changes)
        self._parts, self._known = after, dict(memory)

    async def _read(self, name: str) -> dict[str, str]:
        try:
            return (await self._api.get(f"{self._collection}/{name}")).get("data") or {}
        except Gone:
            return {}


def _split(memory: Mapping[str, str]) -> list[dict[str, str]]:
    """What is known of one application (KIND_APPLICATION) is in one part, so that it is written at once."""
    parts: list[dict[str, str]] = [{} for _ in range(_PARTS)]
    for key, value in memory.items():
        parts[zlib.crc32(key.partition("_")[2].encode()) % _PARTS][key] = value
    return parts


@dataclass(frozen=True, slots=True)
class Source:
    """An entry of a user's Secret; `sha256` is None while it is missing there."""

    namespace: str
    name: str
    key: str
    sha256: str | None


class CopiedKeys:
    """Copies of entries of users' Secrets in one Secret, which pods mount as a folder with a file a key: gateways those
    of providers, models those for their loaders.

    Values are in memory only while they are copied; otherwise their hashes are compared.
    """

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._collection = SECRETS.format(namespace)
        self._name = name
        self._lock = asyncio.Lock()
        self._done: tuple[Mapping[str, Source], float] | None = None

    def forget(self) -> None:
        self._done = None

    async def sync(self, wanted: Mapping[str, Source]) -> None:
        """By file name. Costs nothing if it was called with the same in the last five minutes. A source that is
        missing leaves what was copied before."""
        async with self._lock:
            now = time.monotonic()
            if self._done is not None and self._done[0] == wanted and now - self._done[1] < _VERIFY:
                return
            try:
                found: Object = await self._api.get(f"{self._collection}/{self._name}")
            except Gone:
                found = {}
            present = {key: describe(key_of(found, key) or "").sha256 for key in found.get("data") or {}}
            changes: dict[str, str | None] = {key: None for key in present if key not in wanted}
            for file, source in wanted.items():
                if source.sha256 is None or source.sha256 == present.get(file):
                    continue
                value = key_of(await self._api.get(f"{SECRETS.format(source.namespace)}/{source.name}"), source.key)
                if value is not None:
                    changes[file] = encode(value.strip())
            if changes:
                await _write(self._api, self._collection, self._name, "Secret", changes)
            self._done = (dict(wanted), now)


async def _write(api: Api, collection: str, name: str, kind: str, changes: Mapping[str, str | None]) -> None:
    """Merges into `data`, making the object where it is missing."""
    body: dict[str, Any] = {"metadata": {"labels": _LABELS}, "data": changes}
    try:
        await api.merge(f"{collection}/{name}", body)
    except Gone:
        data = {key: value for key, value in changes.items() if value is not None}
        made = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": _LABELS}, "data": data}
        try:
            await api.create(collection, made)
        except AlreadyExists:
            await api.merge(f"{collection}/{name}", body)
