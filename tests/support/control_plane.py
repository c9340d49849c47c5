"""A real etcd, kube-apiserver and kube-controller-manager for tests: `tests/api/conftest.py` starts one a session.

Programs come from KUBEBUILDER_ASSETS or `hack/binaries/build`. Everything lives on free ports of 127.0.0.1 and in a
temporary folder, and dies with the test process, however that ends: a tiny shell in the same process group waits on a
pipe and kills the group and removes the folder once the pipe breaks.
"""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 120.0  # a busy machine of two cores has needed 30
ATTEMPTS = 3  # a port that was free a moment ago can be taken by then

# Only what ServiceAccounts do is written down, without bodies: that is the operator under test, nobody else.
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
"""

# Lives as long as its stdin is open; `kill 0` is its own process group, which every program below joins.
WATCHDOG = 'trap "" INT TERM HUP; read -r _; rm -rf "$1"; kill -9 0'


class ApiError(Exception):
    """An answer of the API server that isn't a success."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


@dataclass
class ControlPlane:
    """A running control plane; made by `start`."""

    folder: Path
    assets: Path
    watchdog: subprocess.Popen[bytes]
    token: str
    url: str = ""
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def ca_file(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "kubeconfig"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None) -> str:
        """Runs the real kubectl and answers its stdout; a failure raises AssertionError with what it said. With
        check=False the answer is stdout and stderr together."""
        done = subprocess.run(
            [str(self.assets / "kubectl"), f"--kubeconfig={kubeconfig or self.kubeconfig}", *args],
            input=stdin,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},
        )
        if not check:
            return done.stdout + done.stderr
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)} failed: {done.stderr}{done.stdout}")
        return done.stdout

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | list[Any] | None = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
    ) -> dict[str, Any]:
        """One call of the API, as the administrator unless a token is given. ApiError for everything but 2xx."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self.token}", "Content-Type": content_type},
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls()) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(error.code, error.read().decode()) from None
        return json.loads(text) if text.startswith("{") else {"text": text}

    def apply(self, *manifests: Mapping[str, Any], namespace: str | None = None) -> None:
        """`kubectl apply --server-side` of objects given as dictionaries."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
            *(["-n", namespace] if namespace else []),
            stdin=text,
        )

    def apply_files(self, files: Iterable[Path]) -> None:
        """Applies manifests and waits until the CRDs among them are served."""
        args = [arg for file in files for arg in ("-f", str(file))]
        if not args:
            return
        self.kubectl("apply", "--server-side", "--force-conflicts", *args)
        self.wait_for_crds()

    def wait_for_crds(self) -> None:
        """Until every CRD that is there is served: Established comes before its storage is ready."""
        names = self.kubectl("get", "crds", "-o", "name").split()
        if not names:
            return
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        deadline = time.monotonic() + READY_SECONDS
        for name in names:
            while True:
                try:
                    self.kubectl("get", name.partition("/")[2], "--all-namespaces")
                    break
                except AssertionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def fresh_namespace(self, prefix: str = "test") -> str:
        """A new namespace of its own for each test: deleting one takes seconds, so nobody ever waits for that."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def service_account(self, namespace: str, name: str) -> None:
        """Makes a ServiceAccount without any rights."""
        self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    def token_for(self, serviceaccount: str, namespace: str = "default", *, seconds: int = 7200) -> str:
        """A bound token of an existing ServiceAccount."""
        answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{serviceaccount}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}},
        )
        return str(answer["status"]["token"])

    def kubeconfig_for(self, token: str) -> Path:
        """A kubeconfig whose only user has this token."""
        path = self.folder / f"kubeconfig-{uuid.uuid4().hex[:8]}"
        path.write_text(_kubeconfig(self.url, self.ca_file, token))
        path.chmod(0o600)
        return path

    def audit(self) -> list[dict[str, Any]]:
        """What ServiceAccounts asked of the API server, one entry a finished request; a watch appears when it starts
        and again when it ends. Written by the server in batches of its own within a second."""
        path = self.folder / "audit.log"
        if not path.exists():
            return []
        # The last line may be half-written.
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def stop_program(self, name: str) -> None:
        """SIGKILLs one of etcd, kube-apiserver, kube-controller-manager: for tests of what happens without it."""
        program = self.programs.pop(name)
        program.kill()
        program.wait(10)

    def start_api_server(self) -> None:
        """Starts the API server again after `stop_program`, on the same port, and waits until it is ready."""
        self._start("kube-apiserver", *_api_server_args(self))
        self._await_ready()

    # -- inside

    def _start(self, name: str, *args: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [str(self.assets / name), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                process_group=self.watchdog.pid,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            for name, program in self.programs.items():
                if program.poll() is not None:
                    raise _DiedError(name, (self.folder / f"{name}.log").read_text(errors="replace")[-2000:])
            try:
                self.request("GET", "/readyz")
                # Ready is not yet all: the default namespace and RBAC's own roles are made after it.
                self.request("GET", "/api/v1/namespaces/default")
                return
            except (OSError, ApiError) as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"kube-apiserver not ready in {READY_SECONDS:.0f} s: {error}") from error
            time.sleep(0.05)

    def _kill(self) -> None:
        os.killpg(self.watchdog.pid, signal.SIGKILL)
        for program in (*self.programs.values(), self.watchdog):
            program.wait(10)
        if self.watchdog.stdin is not None:
            self.watchdog.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _DiedError(Exception):
    """A program ended during the start; its log is the message."""


def assets() -> Path:
    """The folder of the programs; builds them (minutes, once) where nobody gave them."""
    built = subprocess.run([str(ROOT / "hack/binaries/build")], stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(built.stdout.strip().splitlines()[-1])
    missing = [p for p in ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl") if not (folder / p).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: unset KUBEBUILDER_ASSETS to build them")
    return folder


@contextmanager
def start(crds: Iterable[Path] = ()) -> Iterator[ControlPlane]:
    """Runs a control plane. CRDs given here are applied before the controller manager starts, so that its garbage
    collector knows them from the first moment (it looks for new kinds only every 30 seconds)."""
    folder = assets()
    plane: ControlPlane | None = None
    for attempt in range(1, ATTEMPTS + 1):
        plane = _prepare(folder)
        try:
            _bring_up(plane, list(crds))
            break
        except _DiedError as died:
            plane._kill()
            if attempt == ATTEMPTS or "address already in use" not in str(died):
                raise
        except BaseException:
            plane._kill()
            raise
    assert plane is not None
    try:
        yield plane
    finally:
        plane._kill()


def _prepare(programs: Path) -> ControlPlane:
    folder = Path(tempfile.mkdtemp(prefix="tollway-kube-"))
    watchdog = subprocess.Popen(["sh", "-c", WATCHDOG, "watchdog", str(folder)], stdin=subprocess.PIPE, process_group=0)
    return ControlPlane(folder=folder, assets=programs, watchdog=watchdog, token=uuid.uuid4().hex)


def _bring_up(plane: ControlPlane, crds: list[Path]) -> None:
    port = _free_port()
    plane.url = f"https://127.0.0.1:{port}"
    folder = plane.folder
    (folder / "audit.yaml").write_text(AUDIT_POLICY)
    (folder / "tokens.csv").write_text(f'{plane.token},admin,admin,"system:masters"\n')
    (folder / "tokens.csv").chmod(0o600)
    subprocess.run(
        ["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"], check=True, capture_output=True, timeout=30
    )
    plane.kubeconfig.write_text(_kubeconfig(plane.url, plane.ca_file, plane.token))
    plane.kubeconfig.chmod(0o600)
    (folder / "etcd-client").write_text(f"http://127.0.0.1:{_free_port()}")
    etcd = _etcd_url(plane)
    plane._start(
        "etcd",
        "--unsafe-no-fsync",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--log-level=warn",
    )
    plane._start("kube-apiserver", *_api_server_args(plane))
    plane._await_ready()
    plane.apply_files(crds)
    plane._start(
        "kube-controller-manager",
        f"--kubeconfig={plane.kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller",
    )


def _etcd_url(plane: ControlPlane) -> str:
    return (plane.folder / "etcd-client").read_text()


def _api_server_args(plane: ControlPlane) -> list[str]:
    folder = plane.folder
    return [
        f"--etcd-servers={_etcd_url(plane)}",
        f"--secure-port={plane.url.rsplit(':', 1)[1]}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={folder / 'certs'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kubeconfig(url: str, ca_file: Path, token: str) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": "test", "user": {"token": token}}],
    }
    return json.dumps(config, indent=1)  # JSON is YAML


if __name__ == "__main__":  # by hand: python tests/support/control_plane.py crds/*.yaml
    with start([Path(arg) for arg in sys.argv[1:]]) as running:
        print(
            f"export KUBECONFIG={running.kubeconfig}\n{running.assets}/kubectl get namespaces\nCtrl-C ends it",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            signal.pause()
