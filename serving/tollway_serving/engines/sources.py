"""Turns `source.uri` into a path on this machine: every engine's constructor calls `local`, before it loads anything.

What comes from elsewhere is kept in the node's cache, in a folder named by its content: it is downloaded once under a
lock, beside its final name, and renamed when it is whole. A claim is read where it is mounted.
"""

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from tollway_serving.contract.sources import SourceUri, SourceUriError, read
from tollway_serving.engines.protocol import ModelMissingError
from tollway_serving.engines.weights import locate

log = structlog.get_logger(__name__)

CACHE_VARIABLE = "TOLLWAY_CACHE_DIR"
_LOG_EVERY = 10.0  # seconds
_LOOK_EVERY = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this machine; `places` reads them from the environment."""

    cache: Path
    secrets: Path  # files NAMESPACE_SECRET_ENTRY
    claims: Path  # a folder a claim
    timeout: float = 3600.0  # seconds that one source may take, waiting for another replica's download included


def places() -> Places:
    environment = os.environ
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Places(
        cache=Path(environment.get(CACHE_VARIABLE) or Path(home) / "tollway"),
        secrets=Path(
            environment.get("TOLLWAY_SOURCES_DIR")
            or Path(environment.get("TOLLWAY_SECRETS_DIR", "/etc/tollway/secrets")) / "sources"
        ),
        claims=Path(environment.get("TOLLWAY_CLAIMS_DIR", "/mnt/tollway/claims")),
        timeout=float(environment.get("TOLLWAY_SOURCE_TIMEOUT", "3600")),
    )


class Unreachable(Exception):
    """The origin gives no answer now; a copy from before may serve."""


class Loader(Protocol):
    """One address elsewhere. Its errors are ModelMissingErrors that say what to do, or Unreachable."""

    @property
    def key(self) -> str:
        """The folder of all its versions in the cache."""

    def version(self) -> str:
        """Names the content: what changes there is another version. Asks the origin."""

    def load(self, folder: Path) -> None:
        """Puts everything into the folder; what an attempt before left there is gone on with."""

    def found(self, folder: Path) -> Path:
        """What the engine is given of a whole folder."""


def local(uri: str, secret: str | None = None, where: Places | None = None) -> Path:
    """The file or folder. `secret` is NAMESPACE_SECRET, of source.secretRef. Blocks for as long as a download takes."""
    where = where or places()
    try:
        source = read(uri)
    except SourceUriError as error:
        raise ModelMissingError(f"{uri}: {error}") from None
    if source.scheme == "package":
        return locate(uri)
    if source.scheme == "pvc":
        return _claimed(source, where)
    begun = time.monotonic()
    try:
        path = _cached(source, _entries(secret, where), secret, where)
    except OSError as error:
        raise _disk_trouble(source, where, error) from error
    log.info("source ready", source=source.address, path=str(path), seconds=round(time.monotonic() - begun, 1))
    return path


def file_of(path: Path, pattern: str, uri: str) -> Path:
    """The one file of a folder that an engine wants; a file is itself."""
    if path.is_file():
        return path
    found = sorted(file for file in path.rglob(pattern) if file.is_file())
    if len(found) == 1:
        return found[0]
    named = ", ".join(str(file.relative_to(path)) for file in found[:5])
    why = f"{len(found)} files match {pattern}: add the path of one ({named}, ...)" if found else f"no {pattern} in it"
    raise ModelMissingError(f"{uri}: {why}")


def _claimed(source: SourceUri, where: Places) -> Path:
    mount = where.claims / source.place
    if not mount.is_dir():
        raise ModelMissingError(
            f"{source.address}: no claim {source.place} is mounted here; pvc:// works where Tollway makes the pods"
        )
    path = mount / source.path
    if not path.exists():
        raise ModelMissingError(f"{source.address}: the claim {source.place} has no /{source.path}")
    return path


def _entries(secret: str | None, where: Places) -> Mapping[str, str]:
    """The Secret's entries, read anew for each download and never put into the environment."""
    if secret is None:
        return {}
    prefix = f"{secret}_"
    files = sorted(where.secrets.glob(f"{prefix}*")) if where.secrets.is_dir() else []
    found = {file.name.removeprefix(prefix): file.read_text("utf-8").strip() for file in files}
    if not found:
        raise ModelMissingError(f"Secret {secret_name(secret)} of spec.source.secretRef has not arrived here yet")
    return found


def secret_name(secret: str) -> str:
    return secret.replace("_", "/", 1)


def _cached(source: SourceUri, entries: Mapping[str, str], secret: str | None, where: Places) -> Path:
    from tollway_serving.engines.loaders import loader  # imports its libraries only where they are needed

    deadline = time.monotonic() + where.timeout
    one = loader(source, entries, secret)
    folder = where.cache / "sources" / one.key
    folder.mkdir(parents=True, exist_ok=True)
    try:
        version = _in_time(source, one.version, deadline)
    except Unreachable as error:
        kept = _newest(folder)
        if kept is None:
            raise ModelMissingError(f"{source.address}: {error}; check the address and the pods' way there") from error
        log.warning("source unreachable: an earlier copy serves", source=source.address, error=str(error))
        return one.found(kept)
    whole = folder / version
    if not whole.is_dir():
        with _locked(folder / ".lock", source, deadline):
            if not whole.is_dir():  # (another replica may have been quicker)
                partial = folder / f"{version}.partial"
                partial.mkdir(exist_ok=True)
                try:
                    _in_time(source, lambda: one.load(partial), deadline, watch=partial)
                except Unreachable as error:
                    raise ModelMissingError(f"{source.address}: {error}; the next try goes on from there") from error
                partial.rename(whole)
    return one.found(whole)


def _newest(folder: Path) -> Path | None:
    whole = [item for item in folder.iterdir() if item.is_dir() and not item.name.endswith(".partial")]
    return max(whole, key=lambda item: item.stat().st_mtime, default=None)


@contextmanager
def _locked(file: Path, source: SourceUri, deadline: float) -> Iterator[None]:
    """One download a node and source. The lock goes with its process, however that ends."""
    with file.open("a") as handle:
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if not said:
                log.info("another replica downloads this source: waiting", source=source.address)
                said = True
            if time.monotonic() > deadline:
                raise _too_slow(source)
            time.sleep(_LOOK_EVERY)
        yield


def _in_time(source: SourceUri, work: Callable[[], T], deadline: float, watch: Path | None = None) -> T:
    """The work's result, or its error, in a thread of its own: a library that hangs ends with the process. Says in the
    log how much is there."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="source", daemon=True)
    thread.start()
    while True:
        thread.join(max(0.0, min(_LOG_EVERY, deadline - time.monotonic())))
        if not thread.is_alive():
            break
        if watch is not None:
            log.info("downloading", source=source.address, megabytes=_size(watch) // 10**6)
        if time.monotonic() >= deadline:
            raise _too_slow(source)
    if failure:
        raise failure[0]
    return result[0]


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.lstat().st_size
        except OSError:
            continue  # renamed meanwhile
    return total


def _too_slow(source: SourceUri) -> ModelMissingError:
    return ModelMissingError(
        f"{source.address}: not here in time; the next try goes on from what there is (TOLLWAY_SOURCE_TIMEOUT in the "
        "pods' environment, in seconds, allows more)"
    )


def _disk_trouble(source: SourceUri, where: Places, error: OSError) -> ModelMissingError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(where.cache).free // 10**6 if where.cache.exists() else 0
        return ModelMissingError(
            f"{source.address}: no room in the cache {where.cache} ({free} MB free): give the nodes a larger one "
            "(ray.models.cache of the chart) or delete old folders in it"
        )
    return ModelMissingError(f"{source.address}: the cache {where.cache} can't be used: {error}")
