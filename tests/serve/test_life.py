"""However `tollway up` ends, nothing stays behind, and keys and usage are there again at the next start."""

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.up import PLAN, Up, key, model

from tollway_cli.guardian import descendants


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    up.write("plan.yaml", PLAN)
    up.write("key.yaml", key("me"))
    up.write("small.yaml", model("small"))
    yield up
    up.close()


def assert_port_is_free(up: Up) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", up.port))


def usage_rows(up: Up) -> int:
    with sqlite3.connect(up.state / "ledger.db") as ledger:
        return int(ledger.execute("select count(*) from tollway_usage").fetchone()[0])


@pytest.mark.timeout(700)
def test_a_restart_keeps_keys_and_usage_and_every_end_leaves_nothing(up: Up) -> None:
    up.start()
    first = up.ready().key
    assert up.chat("small").status == 200
    assert up.end(signal.SIGINT) == 0
    assert_port_is_free(up)
    rows = usage_rows(up)
    assert rows == 1

    up.start()
    assert up.ready().key == first
    assert up.chat("small").status == 200
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    assert_port_is_free(up)
    assert usage_rows(up) == rows + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_while_ray_is_starting_leaves_nothing(up: Up, number: int) -> None:
    process = up.start()
    deadline = time.monotonic() + 60
    while len(descendants(process.pid)) < 4:  # the guardian, the head and its first daemons
        assert time.monotonic() < deadline, up.said
        time.sleep(0.05)
    assert up.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert_port_is_free(up)


def test_the_guardians_death_ends_everything_too(up: Up) -> None:
    process = up.start()
    deadline = time.monotonic() + 60
    while len(descendants(process.pid)) < 4:
        assert time.monotonic() < deadline, up.said
        time.sleep(0.05)
    children = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)}
    (guardian,) = [pid for pid, line in children.items() if b"tollway_cli.guardian" in line]
    os.kill(guardian, signal.SIGKILL)
    assert process.wait(60) == 1
    assert "Ray ended unexpectedly" in up.said
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
