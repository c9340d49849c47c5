"""The command line without Ray: the guardian with real processes, the state folder, the Ray head's plan, `validate`."""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tollway_cli import main, ray_head
from tollway_cli.errors import CliError
from tollway_cli.guardian import descendants
from tollway_cli.state import StateFolder, exports

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

# A daemon's daemon: forks away from its parent and session, listens, and would stay for ever.
DAEMONS = """
import os, socket, sys, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0)); s.listen()
            os.write(1, f"{{os.getpid()}} {{s.getsockname()[1]}}\\n".encode())  # one write: two of us share the pipe
            time.sleep(600)
os.wait(); os.wait()
{end}
"""


def start_guardian(folder: Path, end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tollway_cli.guardian", "--remove", str(folder), "--"]
    return subprocess.Popen(
        [*command, sys.executable, "-c", DAEMONS.format(end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_daemons(guardian: subprocess.Popen[str]) -> list[tuple[int, int]]:
    assert guardian.stdout is not None
    lines = [guardian.stdout.readline() for _ in range(2)]
    return [(int(pid), int(port)) for pid, port in (line.split() for line in lines)]


def assert_gone(daemons: list[tuple[int, int]]) -> None:
    for pid, port in daemons:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ray"
    folder.mkdir()
    return folder


@pytest.fixture
def guardian(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with start_guardian(folder, end="time.sleep(600)") as process:
        yield process
        process.terminate()  # and not kill: a failed test shall leave no daemons either


def test_closing_the_pipe_ends_everything(guardian: subprocess.Popen[str], folder: Path) -> None:
    daemons = read_daemons(guardian)
    assert {pid for pid, _ in daemons} <= set(descendants(guardian.pid))
    assert guardian.stdin is not None
    guardian.stdin.close()
    assert guardian.wait(10) == 0
    assert_gone(daemons)
    assert not folder.exists()


def test_sigterm_to_the_guardian_ends_everything(guardian: subprocess.Popen[str]) -> None:
    daemons = read_daemons(guardian)
    guardian.terminate()
    assert guardian.wait(10) == 0
    assert_gone(daemons)


def test_a_command_that_fails_takes_the_rest_with_it_and_leaves_its_logs(folder: Path) -> None:
    with start_guardian(folder, end="sys.exit(3)") as guardian:
        daemons = read_daemons(guardian)
        assert guardian.wait(10) == 3
    assert_gone(daemons)
    assert folder.exists()


def test_kill_9_of_the_owner_ends_everything(tmp_path: Path, folder: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        f"g = subprocess.Popen({[sys.executable, '-m', 'tollway_cli.guardian', '--remove', str(folder), '--']!r}"
        f" + [sys.executable, '-c', {DAEMONS.format(end='time.sleep(600)')!r}],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        try:
            daemons = read_daemons(owner)
            (guardian,) = [pid for pid in descendants(owner.pid) if b"tollway_cli.guardian" in cmdline(pid)]
            handle = os.pidfd_open(guardian)
        finally:
            owner.kill()
    wait_for_end(handle)
    assert_gone(daemons)
    assert not folder.exists()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def wait_for_end(handle: int, timeout: float = 10) -> None:
    assert select.select([handle], [], [], timeout)[0], "the guardian did not end"
    os.close(handle)


def test_the_state_folder_is_private_and_its_token_lasts(tmp_path: Path) -> None:
    state = StateFolder.open(tmp_path / "state")
    first_ray_token = state.write_platform("sqlite:///x")
    token = (state.platform / "internal-token").read_text()
    assert state.write_platform("postgresql://u:secret@h/d") != first_ray_token
    assert (state.platform / "internal-token").read_text() == token
    assert (state.platform / "database-url").read_text() == "postgresql://u:secret@h/d\n"
    env = state.write_env("http://127.0.0.1:8000/v1", "sk-tw-x")
    state.close()
    assert env.read_text() == "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1\nexport OPENAI_API_KEY=sk-tw-x\n"
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_only_one_up_has_a_state_folder(tmp_path: Path) -> None:
    state = StateFolder.open(tmp_path)
    with pytest.raises(CliError, match=rf"in use by another .*process {os.getpid()}.*--state-dir"):
        StateFolder.open(tmp_path)
    state.close()
    StateFolder.open(tmp_path).close()


def test_a_lock_that_a_dead_ups_guardian_holds_is_waited_for(tmp_path: Path) -> None:
    """As after kill -9: the guardian holds the lock until it has cleared up."""
    code = "import os, sys; from pathlib import Path; from tollway_cli.state import StateFolder\n"
    code += "state = StateFolder.open(Path(sys.argv[1])); os.set_inheritable(state.lock, True)\n"
    code += "os.execvp('sh', ['sh', '-c', '(echo ready; sleep 1) & exit 0']) if os.fork() == 0 else os.wait()\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        owner.wait(10)
        begun = time.monotonic()
        StateFolder.open(tmp_path).close()
        assert time.monotonic() - begun > 0.2


def test_a_state_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match="--state-dir"):
        StateFolder.open(tmp_path / "file" / "state")


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollway_cli.state._NEEDED_BYTES", 2**60)
    with pytest.raises(CliError, match="make room"):
        StateFolder.open(tmp_path)


def test_exports_survive_a_shell() -> None:
    value = "a'b $c"
    script = exports("http://h/v1", value) + 'printf %s "$OPENAI_API_KEY"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == value


def test_a_head_has_ports_and_folders_of_its_own(tmp_path: Path) -> None:
    inherited = {"PATH": "/bin", "RAY_ADDRESS": "10.0.0.1:6379", "TOLLWAY_SECRET_P_K": "s", "TOLLWAY_DATABASE_URL": "u"}
    heads = [ray_head.plan_head(tmp_path / name, tmp_path / name / "platform", inherited) for name in ("a", "b")]
    for head in heads:
        env = head.environment
        assert env["PATH"] == "/bin"
        assert not {"RAY_ADDRESS", "TOLLWAY_SECRET_P_K", "TOLLWAY_DATABASE_URL"} & env.keys()
        assert int(env["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > 3600
        assert env["RAY_AUTH_MODE"] == "token"
        assert env["FORWARDED_ALLOW_IPS"] == ""
        # HAProxy's socket: our folder, a node's id of 56 characters, the name; HAProxy takes 97.
        assert len(f"{head.temp}/{'0' * 56}/admin.sock") <= 97
        shutil.rmtree(head.temp)
    first, second = heads
    assert first.temp != second.temp
    assert first.dashboard_port != second.dashboard_port
    for name in ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC"):
        assert first.environment[f"RAY_SERVE_{name}_PORT"] != second.environment[f"RAY_SERVE_{name}_PORT"]


# A process whose first thread ends while another one lives: to look at, it is a zombie.
HALF_DEAD = """
import os, subprocess, sys, threading, time
from pathlib import Path
from tollway_cli.guardian import adopt_orphans, descendants, kill_descendants
adopt_orphans()
code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); " \
    "ctypes.CDLL(None).pthread_exit(None)"
child = subprocess.Popen([sys.executable, "-c", code])
while b") Z " not in Path(f"/proc/{child.pid}/stat").read_bytes():
    time.sleep(0.01)
print(descendants(os.getpid()), kill_descendants(), Path(f"/proc/{child.pid}").exists())
"""


def test_a_process_whose_first_thread_has_ended_is_not_gone_yet() -> None:
    done = subprocess.run([sys.executable, "-c", HALF_DEAD], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[] True False\n"), done.stderr


def test_a_heads_folder_is_emptied_at_the_next_start(tmp_path: Path) -> None:
    head = ray_head.plan_head(tmp_path, tmp_path / "platform", {})
    (head.temp / "left").touch()
    again = ray_head.plan_head(tmp_path, tmp_path / "platform", {})
    assert again.temp == head.temp
    assert not (again.temp / "left").exists()
    assert again.temp.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(again.temp)


def test_validate_takes_the_quickstart_and_names_the_line_of_a_mistake(tmp_path: Path) -> None:
    run = CliRunner().invoke(main.app, ["validate", "-f", str(QUICKSTART)])
    assert (run.exit_code, run.stdout) == (0, "3 objects are sound\n")
    bad = tmp_path / "plan.yaml"
    bad.write_text("apiVersion: tollway.dev/v1alpha1\nkind: Plan\nmetadata: {name: p}\nspec:\n  tier: Gold\n")
    run = CliRunner().invoke(main.app, ["validate", "-f", str(tmp_path)])
    assert run.exit_code == 1
    assert f"{bad}:5:" in run.stderr
