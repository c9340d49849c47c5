"""The `Objects` port over YAML files, for `tollway up`: the same rules as on a cluster, keys and statuses as files.

The files are looked at once a second (their sizes and times, without opening them): that also works on mounts that
tell no changes. A file that is broken keeps what it last said; one that is gone for a moment, as editors do it, too.
"""

import asyncio
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import structlog

from tollway_operator.errors import Gone, NotOurs, Refused
from tollway_operator.files_state import OwnSecret, StateFolder
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe, generate
from tollway_operator.ports import Raw, SecretView, Snapshot
from tollway_operator.resources import AnyResource, ApiKey, ModelDeployment, check_update, spec_of
from tollway_operator.resources.load import SUFFIXES, Files, Loaded, LoadedSecret, load
from tollway_serving.contract.sources import LOADER_ENTRIES

log = structlog.get_logger(__name__)

_LOOK = 1.0  # seconds between two looks at the files

Values = dict[tuple[str, str], dict[str, bytes]]
Signature = dict[str, tuple[int, int, int]]


class FilesObjects:
    """`paths` are YAML files or folders of them; `state` is the state folder.

    `await start()` reads everything once (raises errors.Refused with one line if a file is broken at the start) and
    begins to watch; `await close()` ends that. `problems` are the lines about files that are broken now.
    """

    def __init__(self, paths: Sequence[Path], state: Path) -> None:
        self.changed = asyncio.Event()
        self.problems: tuple[str, ...] = ()
        self._paths = tuple(paths)
        self._folder = StateFolder(state)
        self._lock = asyncio.Lock()  # of the state folder
        self._good: dict[str, tuple[list[Loaded], list[LoadedSecret]]] = {}
        self._resources: dict[tuple[str, str, str], AnyResource] = {}
        self._documents: Values = {}
        self._statuses: dict[str, dict[str, Any]] = {}  # by uid
        self._snapshot: Snapshot | None = None
        self._signature: Signature = {}
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await asyncio.to_thread(self._folder.open)
        self._signature = await asyncio.to_thread(self._sign)
        files = await asyncio.to_thread(load, self._paths)
        if files.problems:
            more = len(files.problems) - 1
            raise Refused(str(files.problems[0]) + (f" (and {more} more)" if more else ""))
        self._take(files)
        self._watcher = asyncio.create_task(self._watch())
        self.changed.set()

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    def key_file(self, namespace: str, name: str) -> Path:
        """Where the generated key of an ApiKey stands."""
        found = self._resources.get(("ApiKey", namespace, name))
        secret = found.secret_name if isinstance(found, ApiKey) else name
        return self._folder.value_file(namespace, secret, KEY_FIELD)

    # The port

    async def snapshot(self) -> Snapshot:
        async with self._lock:
            if self._snapshot is None:
                self._snapshot = await asyncio.to_thread(self._build)
            return self._snapshot

    async def ensure_key(self, owner: Raw, secret_name: str, base_url: str) -> None:
        async with self._lock:
            self._alive(owner)
            await asyncio.to_thread(self._ensure_key, owner, secret_name, base_url)
            self._touch()

    async def rotate_key(self, owner: Raw, secret_name: str) -> None:
        async with self._lock:
            self._alive(owner)
            own = self._folder.secrets.get(f"{owner.namespace}/{secret_name}")
            if own is None or own.owner_uid != owner.uid:
                raise NotOurs(f"Secret {owner.namespace}/{secret_name} is not this ApiKey's")
            key = generate()
            await asyncio.to_thread(self._folder.write_value, owner.namespace, secret_name, KEY_FIELD, key)
            self._touch()

    async def delete_key(self, namespace: str, secret_name: str, uid: str) -> None:
        async with self._lock:
            own = self._folder.secrets.get(f"{namespace}/{secret_name}")
            if own is None or own.uid != uid:
                return
            await asyncio.to_thread(self._folder.remove_secret, namespace, secret_name)
            self._touch()

    async def write_status(self, target: Raw, status: Mapping[str, Any]) -> None:
        async with self._lock:
            self._alive(target)
            await asyncio.to_thread(self._folder.write_status, target.kind, target.namespace, target.name, status)
            self._statuses[target.uid] = dict(status)
            self._snapshot = None

    async def record_event(self, target: Raw, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        write = log.warning if type_ == "Warning" else log.info
        write("event", object=f"{target.kind} {target.namespace}/{target.name}", reason=reason, message=message)

    async def remember(self, memory: Mapping[str, str]) -> None:
        async with self._lock:
            await asyncio.to_thread(self._folder.save_memory, memory)
            self._snapshot = None

    async def sync_provider_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._copy("providers", wanted)

    async def sync_source_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._copy("sources", wanted)

    async def _copy(self, folder: str, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        async with self._lock:
            values = await asyncio.to_thread(self._all_values)
            found = {}
            for file, (namespace, name, key) in wanted.items():
                value = values.get((namespace, name), {}).get(key)
                if value is not None:
                    found[file] = value.strip() + b"\n"
            await asyncio.to_thread(self._folder.write_copies, folder, found)

    # Files

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            try:
                await self._look()
            except OSError as error:
                log.warning("files_not_read", error=str(error))
            except Exception:
                log.exception("files_not_read")

    async def _look(self) -> None:
        seen = await asyncio.to_thread(self._sign)
        if seen == self._signature:
            return
        if self._signature.keys() - seen.keys():  # an editor may be about to put the file back
            await asyncio.sleep(_LOOK)
            seen = await asyncio.to_thread(self._sign)
            if seen == self._signature:
                return
        files = await asyncio.to_thread(load, self._paths)
        async with self._lock:
            self._signature = seen
            self._take(files)
            self._touch()

    def _sign(self) -> Signature:
        """What changes when a file does: of the YAML files and of the Secrets' files in the state folder."""
        found: Signature = {}
        for path in (*self._paths, self._folder.root / "secrets"):
            if path.is_dir():
                secrets = path == self._folder.root / "secrets"
                for folder, folders, names in os.walk(path):
                    folders[:] = [name for name in folders if not name.startswith(".")]
                    for name in names:
                        if not name.startswith(".") and (secrets or name.endswith(SUFFIXES)):
                            _stat(os.path.join(folder, name), found)
            else:
                _stat(str(path), found)
        return found

    def _take(self, files: Files) -> None:
        """Takes over what was loaded; of a file with problems, what it last said. The first of two wins."""
        fresh: dict[str, tuple[list[Loaded], list[LoadedSecret]]] = {}
        for loaded in files.resources:
            fresh.setdefault(loaded.file, ([], []))[0].append(loaded)
        for secret in files.secrets:
            fresh.setdefault(secret.file, ([], []))[1].append(secret)
        lines = []
        for problem in files.problems:
            if Path(problem.file).is_dir() or (problem.line == 0 and not Path(problem.file).exists()):
                fresh.pop(problem.file, None)
                if problem.file not in self._good:
                    lines.append(str(problem))
                continue
            lines.append(str(problem))
            if problem.file in self._good:
                fresh[problem.file] = self._good[problem.file]
        self._good = fresh
        resources: dict[tuple[str, str, str], AnyResource] = {}
        documents: Values = {}
        for _, (found, secrets) in sorted(fresh.items()):
            for loaded in found:
                resource = loaded.resource
                key = (loaded.kind, resource.namespace, resource.name)
                old = self._resources.get(key)
                refusal = check_update(old, resource) if old is not None and type(old) is type(resource) else None
                if old is not None and refusal is not None:
                    lines.append(f"{loaded.file}:{loaded.line}: {loaded.kind} {resource.full_name}: {refusal.message}")
                    resource = old
                resources.setdefault(key, resource)
            for secret in secrets:
                documents.setdefault((secret.namespace, secret.name), dict(secret.values))
        for line in lines:
            if line not in self.problems:
                log.warning("file_problem", problem=line)
        self.problems = tuple(lines)
        self._resources = resources
        self._documents = documents

    # Building a snapshot

    def _build(self) -> Snapshot:
        now = int(time.time())
        objects = []
        names = set()
        for (kind, namespace, name), resource in self._resources.items():
            spec = spec_of(resource)
            label = f"{kind} {namespace}/{name}"
            names.add(label)
            content = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
            identity = self._folder.identify(label, content, now)
            if identity.uid not in self._statuses:
                self._statuses[identity.uid] = self._folder.read_status(kind, namespace, name)
            objects.append(
                Raw(
                    kind=resource.KIND,
                    namespace=namespace,
                    name=name,
                    uid=identity.uid,
                    generation=identity.generation,
                    created=identity.created,
                    resource_version=str(identity.generation),
                    labels=dict(resource.metadata.labels),
                    spec=spec,
                    status=self._statuses[identity.uid],
                )
            )
        for label in self._folder.identities.keys() - names:
            kind, _, full_name = label.partition(" ")
            self._statuses.pop(self._folder.identities.pop(label).uid, None)
            self._folder.remove_status(kind, *full_name.split("/", 1))
            self._folder.dirty = True
        if self._folder.dirty:
            self._folder.save()
        return Snapshot(tuple(objects), self._views(), self._folder.memory)

    def _views(self) -> dict[tuple[str, str], SecretView]:
        found = {}
        for (namespace, name), values in self._all_values().items():
            own = self._folder.secrets.get(f"{namespace}/{name}")
            if (namespace, name) in self._documents:
                own = None  # written in the files: the user's own
            found[namespace, name] = SecretView(
                namespace=namespace,
                name=name,
                uid=own.uid if own else "",
                labels={OWNER_LABEL: own.owner, MANAGED_BY: "tollway"} if own else {},
                owner_uid=own.owner_uid if own else None,
                created=own.created if own else 0,
                values={key: describe(value.decode("utf-8", "replace")) for key, value in values.items()},
            )
        return found

    def _all_values(self) -> Values:
        """Every Secret: as a document, else as files, else in the environment (only what a secretRef names)."""
        found: Values = {}
        for namespace, name in self._folder.secret_names():
            values = self._folder.values(namespace, name)
            if values or f"{namespace}/{name}" in self._folder.secrets:
                found[namespace, name] = values
        for place, values in self._documents.items():
            found[place] = {**found.get(place, {}), **values}
        for namespace, name, key in self._references():
            value = os.environ.get(environment_name(name, key))
            if value:
                found.setdefault((namespace, name), {}).setdefault(key, value.encode())
        return found

    def _references(self) -> list[tuple[str, str, str]]:
        found = []
        for resource in self._resources.values():
            if isinstance(resource, ModelDeployment) and resource.spec.source and resource.spec.source.secret_ref:
                name = resource.spec.source.secret_ref.name
                found += [(resource.namespace, name, entry) for entry in LOADER_ENTRIES]
            reference = None
            if isinstance(resource, ApiKey):
                reference = resource.spec.secret_ref
            elif isinstance(resource, ModelDeployment) and resource.spec.remote is not None:
                reference = resource.spec.remote.secret_ref
            if reference is not None:
                found.append((resource.namespace, reference.name, reference.key))
        return found

    # Keys

    def _ensure_key(self, owner: Raw, secret_name: str, base_url: str) -> None:
        place = f"{owner.namespace}/{secret_name}"
        own = self._folder.secrets.get(place)
        if (owner.namespace, secret_name) in self._documents:
            raise NotOurs(f"Secret {place} is in your files: set another spec.secretName, or name it in spec.secretRef")
        values = self._folder.values(owner.namespace, secret_name)
        if own is None and values:
            raise NotOurs(f"{self._folder.root / 'secrets' / place} is not ours: set another spec.secretName")
        if own is None or own.owner_uid != owner.uid:
            if own is not None:
                self._folder.remove_secret(owner.namespace, secret_name)  # of an object that is gone
                values = {}
            self._folder.secrets[place] = OwnSecret(str(uuid.uuid4()), owner.uid, owner.name, int(time.time()))
            self._folder.save()  # first, so that a crash leaves no key that nobody knows
        if not values.get(KEY_FIELD, b"").strip():
            self._folder.write_value(owner.namespace, secret_name, KEY_FIELD, generate())
        if values.get(URL_FIELD, b"").strip() != base_url.encode():
            self._folder.write_value(owner.namespace, secret_name, URL_FIELD, base_url)

    def _alive(self, target: Raw) -> None:
        identity = self._folder.identities.get(f"{target.kind} {target.namespace}/{target.name}")
        if identity is None or identity.uid != target.uid:
            raise Gone(f"{target.kind} {target.namespace}/{target.name} is gone")

    def _touch(self) -> None:
        self._snapshot = None
        self.changed.set()


def environment_name(secret: str, key: str) -> str:
    """The variable that may hold a Secret's entry: TOLLWAY_SECRET_NAME_KEY."""
    return "TOLLWAY_SECRET_" + re.sub("[^A-Z0-9]", "_", f"{secret}_{key}".upper())


def _stat(path: str, found: Signature) -> None:
    with suppress(OSError):
        status = os.stat(path)
        found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
