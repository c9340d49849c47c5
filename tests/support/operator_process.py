"""A real `tollway operator` process for tests/api: started, awaited, read, and killed as hard as one likes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from support.control_plane import ROOT


class OperatorProcess:
    """Its log is `log`; `kill` is SIGKILL, `stop` is SIGTERM."""

    def __init__(
        self, folder: Path, *, kubeconfig: Path, namespace: str, ray: str, database: str, **extra: str
    ) -> None:
        self.port = _free_port()
        self.log = folder / f"operator-{self.port}.log"
        self._env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'serving'}",
            "PYTHONWARNINGS": "default",
            "TOLLWAY_NAMESPACE": namespace,
            "TOLLWAY_RAY_ADDRESS": ray,
            "TOLLWAY_DATABASE_URL": database,
            "TOLLWAY_BASE_URL": "https://models.example.com/v1",
            "TOLLWAY_LISTEN": f"127.0.0.1:{self.port}",
            "TOLLWAY_LEASE_SECONDS": "3",
            **extra,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> "OperatorProcess":
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tollway_operator.main"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self.log.parent,
            )
        return self

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait(10)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def stop(self, seconds: float = 20) -> int:
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, seconds)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    async def until(self, path: str, words: str, seconds: float = 40) -> str:
        """Waits until an answer holds these words; a process that ended fails at once, with its log."""
        text = ""
        try:
            async with asyncio.timeout(seconds):
                while words not in text:
                    assert self.process.poll() is None, self.text()
                    _, text = await asyncio.to_thread(self.get, path)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path} never said {words!r} but {text!r}; log:\n{self.text()}") from None
        return text

    async def until_leading(self, seconds: float = 40) -> None:
        await self.until("/readyz", "leading", seconds)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
