"""The process between `tollway up` and everything that it starts: however `up` ends, nothing stays behind.

`up` runs `python -m tollway_cli.guardian --remove FOLDER -- COMMAND…` with a pipe as standard input. The guardian runs
COMMAND as its child and adopts whatever COMMAND's own children leave behind (Ray's daemons are started by daemons). It
ends when the pipe closes (`up` returned, crashed or was killed with -9), when COMMAND ends, or on SIGTERM; then it
kills every descendant, removes FOLDER and exits with COMMAND's status.

Only the standard library, nothing of Ray: this process must outlive them all and be up in milliseconds.
"""

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_KILL_TIMEOUT_S = 15.0
_POLL_S = 0.02


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant whose own parent dies. Linux only; OSError if refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int, *, zombies: bool = False) -> list[int]:
    """Process ids below `root`; with `zombies` also of dead ones that nobody waited for.

    A process whose first thread has ended looks like one of those while its other threads live, or are still being
    taken down: whoever must know that it is gone asks for zombies too, and waits for them.
    """
    children: dict[int, list[int]] = {}
    dead: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        state, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
        if state == b"X":
            continue
        if state == b"Z":
            dead.add(int(entry.name))
        children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    open_: list[int] = [root]
    while open_:
        for child in children.get(open_.pop(), ()):
            found.append(child)
            open_.append(child)
    return found if zombies else [pid for pid in found if pid not in dead]


def kill_descendants(timeout_s: float = _KILL_TIMEOUT_S) -> bool:
    """Kills all descendants of this process (which must be adopting orphans) until none is left, and waits for them.

    SIGKILL at once: what they hold is in the ledger's database, which survives that by design, and a graceful stop of
    Ray Serve takes half a minute. False if some are still there after the timeout.
    """
    deadline = time.monotonic() + timeout_s
    while left := descendants(os.getpid(), zombies=True):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap(lambda _pid, _status: None)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    _reap(lambda _pid, _status: None)
    return True


def _reap(on_end: Callable[[int, int], None]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        on_end(pid, os.waitstatus_to_exitcode(status))


def _watch(command: list[str]) -> int:
    """Runs `command` until it ends, the pipe closes or a signal comes; answers the exit status."""
    wake_read, wake_write = os.pipe()
    for end in (wake_read, wake_write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake_write)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: asked.append(got))
    signal.signal(signal.SIGCHLD, lambda _got, _frame: None)  # only to wake up
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - `up` says what to run
    ended: dict[int, int] = {}
    while child.pid not in ended and not asked:
        ready, _, _ = select.select([sys.stdin.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return 0
        _reap(ended.__setitem__)
    return ended.get(child.pid, 0)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tollway_cli.guardian")
    parser.add_argument("--remove", action="append", default=[], type=Path, help="folder to delete at the end")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    adopt_orphans()
    status = 1
    try:
        status = _watch(options.command)
    finally:
        gone = kill_descendants()
        if status == 0:  # after a failure the logs in there say why
            for folder in options.remove:
                shutil.rmtree(folder, ignore_errors=True)
    return status if gone else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
