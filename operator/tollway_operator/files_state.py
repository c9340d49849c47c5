"""The state folder as `files` keeps it: identities, keys, statuses and memory, each written atomically. Plain blocking
calls, one folder, one writer (`tollway up` holds the folder's lock).

    objects.json                      uid, age and generation of every object; owner of every Secret of ours
    secrets/NAMESPACE/NAME/KEY        one value a file, mode 0600
    status/KIND/NAMESPACE/NAME.json   what `kubectl get -o yaml` would show as status
    memory.json                       the last good application configs
    platform/providers/NAME           providers' keys for the gateways
    platform/sources/NAME             what models' loaders read
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tollway_operator.errors import Refused

_LARGEST_VALUE = 1 << 20
_SECRET_FILE = re.compile(r"[-._a-zA-Z0-9]+")


@dataclass(slots=True)
class Identity:
    """Of an object, by "Kind namespace/name"."""

    uid: str
    created: int  # first seen, seconds since the epoch
    generation: int
    spec: str  # the spec's content, to see when it changes


@dataclass(slots=True)
class OwnSecret:
    """A Secret that we made, by "namespace/name"."""

    uid: str
    owner_uid: str
    owner: str  # the ApiKey's name
    created: int


class StateFolder:
    """Refused, with one clear line, if what is there can't be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identities: dict[str, Identity] = {}
        self.secrets: dict[str, OwnSecret] = {}
        self.memory: dict[str, str] = {}
        self.dirty = False  # an identity is not saved yet

    def open(self) -> None:
        platform = self.root / "platform"
        for folder in (self.root, self.root / "secrets", platform, platform / "providers", platform / "sources"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self._read_json("objects.json")
        memory = self._read_json("memory.json")
        try:
            self.identities = {key: Identity(**value) for key, value in known.get("objects", {}).items()}
            self.secrets = {key: OwnSecret(**value) for key, value in known.get("secrets", {}).items()}
        except TypeError as error:
            raise Refused(f"{self.root / 'objects.json'} is of another version: {error}") from error
        self.memory = {str(key): str(value) for key, value in memory.items()}

    def identify(self, key: str, spec: str, now: int) -> Identity:
        """The object's identity; a new one, or a new generation, where there is reason to. `save` keeps it."""
        known = self.identities.get(key)
        if known is None:
            known = self.identities[key] = Identity(str(uuid.uuid4()), now, 1, spec)
            self.dirty = True
        elif known.spec != spec:
            known.generation += 1
            known.spec = spec
            self.dirty = True
        return known

    def save(self) -> None:
        content = {
            "objects": {key: asdict(value) for key, value in sorted(self.identities.items())},
            "secrets": {key: asdict(value) for key, value in sorted(self.secrets.items())},
        }
        write_file(self.root / "objects.json", json.dumps(content, indent=1).encode())
        self.dirty = False

    def save_memory(self, memory: Mapping[str, str]) -> None:
        self.memory = dict(memory)
        write_file(self.root / "memory.json", json.dumps(self.memory, indent=1, sort_keys=True).encode())

    # Secrets

    def value_file(self, namespace: str, name: str, key: str) -> Path:
        return self.root / "secrets" / namespace / name / key

    def values(self, namespace: str, name: str) -> dict[str, bytes]:
        folder = self.root / "secrets" / namespace / name
        found = {}
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if _SECRET_FILE.fullmatch(file.name) and not file.name.startswith(".") and file.is_file():
                with file.open("rb") as stream:
                    found[file.name] = stream.read(_LARGEST_VALUE)
        return found

    def secret_names(self) -> list[tuple[str, str]]:
        """(namespace, name) of every folder in secrets/."""
        found = []
        for namespace in sorted((self.root / "secrets").iterdir()):
            if namespace.is_dir():
                found += [(namespace.name, folder.name) for folder in sorted(namespace.iterdir()) if folder.is_dir()]
        return found

    def write_value(self, namespace: str, name: str, key: str, value: str) -> None:
        file = self.value_file(namespace, name, key)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(file, value.encode() + b"\n")

    def remove_secret(self, namespace: str, name: str) -> None:
        shutil.rmtree(self.root / "secrets" / namespace / name, ignore_errors=True)
        self.secrets.pop(f"{namespace}/{name}", None)
        self.save()

    # Statuses

    def read_status(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """{} where there is none, or none that can be read: it is written anew."""
        try:
            found = json.loads(self._status_file(kind, namespace, name).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        file = self._status_file(kind, namespace, name)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(file, json.dumps(status, indent=1).encode(), durable=False)

    def remove_status(self, kind: str, namespace: str, name: str) -> None:
        self._status_file(kind, namespace, name).unlink(missing_ok=True)

    def _status_file(self, kind: str, namespace: str, name: str) -> Path:
        return self.root / "status" / kind / namespace / f"{name}.json"

    # Copies of Secrets' entries

    def write_copies(self, name: str, values: Mapping[str, bytes]) -> None:
        """Makes platform/NAME hold exactly these."""
        folder = self.root / "platform" / name
        for file in folder.iterdir():
            if file.name not in values:
                file.unlink()
        for entry, value in values.items():
            file = folder / entry
            if not file.exists() or file.read_bytes() != value:
                write_file(file, value)

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.root / name
        try:
            found = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise Refused(f"{file} can't be read ({error}); move it away to start with fresh keys") from error
        if not isinstance(found, dict):
            raise Refused(f"{file} can't be read; move it away to start with fresh keys")
        return found


def write_file(file: Path, content: bytes, *, durable: bool = True) -> None:
    """All or nothing, mode 0600; `durable`: also after a power cut."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
