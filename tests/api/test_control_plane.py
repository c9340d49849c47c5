"""The test control plane itself: what every other test here stands on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.control_plane import ROOT, ApiError, ControlPlane


def test_serves_tokens_and_namespaces(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.service_account(namespace, "nobody")
    token = control_plane.token_for("nobody", namespace)
    with pytest.raises(ApiError) as refused:
        control_plane.request("GET", f"/api/v1/namespaces/{namespace}/secrets", token=token)
    assert refused.value.status == 403
    assert "nobody" in str(refused.value)
    assert namespace in control_plane.kubectl("get", "namespaces", "-o", "name")


def test_nothing_outlives_a_killed_test_run(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/control_plane.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("export KUBECONFIG=")
    assert _running(tmp_path)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _running(tmp_path) or list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, (_running(tmp_path), list(tmp_path.iterdir()))
        time.sleep(0.05)


def _running(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line[:120])
    return found
