"""The state folder of `tollway up`: its lock, the platform's secrets, and the file with the two exports.

STATE/platform is what a cluster's pods get as a mounted Secret (TOLLWAY_SECRETS_DIR). Everything here is the user's
alone: folders 0700, files 0600.
"""

import fcntl
import os
import secrets
import shlex
import shutil
import time
from pathlib import Path

from tollway_cli.errors import CliError

_NEEDED_BYTES = 500 * 2**20
_TAKEOVER_S = 20.0


class StateFolder:
    """Open and locked; `close` releases it. Only one `up` may have it at a time."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self.lock = lock  # a file descriptor; the guardian keeps it open until nothing runs any more
        self.platform = root / "platform"

    @classmethod
    def open(cls, root: Path) -> "StateFolder":
        """CliError if it is in use, can't be written or its disk is full."""
        root = root.absolute()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CliError(
                f"the state folder {root} can't be used: {error.strerror}; name another with --state-dir"
            ) from error
        _take(lock, root)
        state = cls(root, lock)
        if (free := shutil.disk_usage(root).free) < _NEEDED_BYTES:
            raise CliError(
                f"only {free // 2**20} MiB are free where {root} is, {_NEEDED_BYTES // 2**20} are needed: "
                "make room, or name another folder with --state-dir"
            )
        state.platform.mkdir(mode=0o700, exist_ok=True)
        (state.platform / "providers").mkdir(mode=0o700, exist_ok=True)
        return state

    def close(self) -> None:
        os.close(self.lock)

    def default_database(self) -> str:
        return f"sqlite:///{self.root / 'ledger.db'}"

    def write_platform(self, database_url: str) -> str:
        """Writes the secrets that all processes read; answers Ray's auth token. The internal token stays the same."""
        token = self.platform / "internal-token"
        if not token.exists():
            write_private(token, secrets.token_urlsafe(32) + "\n")
        write_private(self.platform / "database-url", database_url + "\n")
        ray_token = secrets.token_hex(32)  # of this run only
        write_private(self.platform / "ray-token", ray_token)
        return ray_token

    def write_env(self, base_url: str, key: str) -> Path:
        """The two exports as a file to source."""
        file = self.root / "env"
        write_private(file, exports(base_url, key))
        return file


def exports(base_url: str, key: str) -> str:
    return f"export OPENAI_BASE_URL={shlex.quote(base_url)}\nexport OPENAI_API_KEY={shlex.quote(key)}\n"


def write_private(file: Path, text: str) -> None:
    """Atomically, readable by the user only."""
    fresh = file.with_name(f".{file.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        os.fchmod(descriptor, 0o600)
        out.write(text)
    fresh.replace(file)


def _take(lock: int, root: Path) -> None:
    """Locks, waiting only for the guardian of an `up` that is already gone to finish clearing up."""
    deadline = time.monotonic() + _TAKEOVER_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if _alive(holder) or time.monotonic() > deadline:
                os.close(lock)
                raise CliError(
                    f"{root} is in use by another `tollway up` (process {holder or 'unknown'}): "
                    "stop that one, or give this one a folder of its own with --state-dir"
                ) from None
            time.sleep(0.1)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
