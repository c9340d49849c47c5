"""hack/kind-up as far as it goes without Docker: its own steps, with stand-ins for docker, kind and kubectl that keep
what they were called with, and the real Helm, which renders what it would install. That the platform then comes up is
hack/e2e's to show, whose functions it shares.
"""

import subprocess
from pathlib import Path

import pytest
from support.control_plane import ROOT

STAND_IN = """#!/usr/bin/env bash
echo "{name} $*" >> "$CALLS"
{body}
"""
BODIES = {
    "docker": '[[ "$1" == info || -d "${*: -1}" ]]',
    "kind": """case "$*" in
  "get clusters") cat "$CLUSTERS";;
  "get kubeconfig"*) echo "of $4";;
esac""",
    "kubectl": """grep -qx "of tollway" "$KUBECONFIG" || { echo "not kind's cluster" >&2; exit 1; }
if [[ "$*" == *"get secret me"* ]]; then echo -n sk-tw-me; fi""",
    "helm": """grep -qx "of tollway" "$KUBECONFIG" || exit 1
[[ "$*" == *kuberay-operator* ]] || "$REAL_HELM" template "${@:3}" > "$RENDERED\"""",
}


class Machine:
    """A PATH with stand-ins; `calls` is what they were called with, in order."""

    def __init__(self, folder: Path) -> None:
        self.bin, self._calls, self.clusters = folder / "bin", folder / "calls", folder / "clusters"
        self.rendered = folder / "rendered"
        self.bin.mkdir()
        self._calls.touch()
        self.clusters.touch()
        for name, body in BODIES.items():
            (self.bin / name).write_text(STAND_IN.format(name=name, body=body))
            (self.bin / name).chmod(0o755)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        real = subprocess.run([str(ROOT / "hack/binaries/build-helm")], stdout=subprocess.PIPE, text=True, check=True)
        return subprocess.run(
            [str(ROOT / "hack/kind-up")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "HOME": str(self.bin.parent),
                "CALLS": str(self._calls),
                "CLUSTERS": str(self.clusters),
                "RENDERED": str(self.rendered),
                "REAL_HELM": real.stdout.strip(),
                **environment,
            },
        )

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def called(self, start: str) -> int:
        """When, among all calls."""
        return next(i for i, call in enumerate(self.calls) if call.startswith(start))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_makes_a_cluster_with_everything_in_it_and_says_what_to_paste(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 0, done.stderr
    order = [
        "kind create cluster --name tollway",
        "docker build -t tollway-operator:kind -f operator/Dockerfile",
        "docker build -t tollway-serving:kind -f serving/Dockerfile",
        "kind load docker-image --name tollway tollway-operator:kind tollway-serving:kind",
        "helm upgrade --install kuberay-operator",
        "helm upgrade --install tollway charts/tollway -n tollway",
        "kubectl -n tollway apply -f examples/quickstart",
        "kubectl -n tollway wait --for=condition=Ready modeldeployment/smollm2 apikey/me",
    ]
    assert [machine.called(call) for call in order] == sorted(machine.called(call) for call in order)
    rendered = machine.rendered.read_text()
    assert "image: tollway-operator:kind" in rendered
    assert "image: postgres:18" in rendered
    assert "OPENAI_API_KEY=sk-tw-me\n" in done.stdout
    assert "kubectl --context kind-tollway -n tollway port-forward service/tollway 8000:80" in done.stdout


def test_again_it_keeps_the_cluster_and_with_a_base_it_pulls_nothing(machine: Machine) -> None:
    machine.clusters.write_text("other\ntollway\n")
    done = machine.run(BASE="mirror.example.com/python:3.12")
    assert done.returncode == 0, done.stderr
    assert not any(call.startswith("kind create") for call in machine.calls)
    builds = [call for call in machine.calls if call.startswith("docker build")]
    assert len(builds) == 4
    assert all("--build-arg BASE=mirror.example.com/python:3.12" in call for call in builds)
    assert "image: tollway-postgresql:kind" in machine.rendered.read_text()


@pytest.mark.parametrize("missing", ["kind", "helm"])
def test_what_is_missing_is_named_before_anything_is_made(machine: Machine, missing: str) -> None:
    (machine.bin / missing).unlink()
    if any((Path(folder) / missing).exists() for folder in ("/usr/bin", "/bin")):
        pytest.fail(f"this machine has {missing} in /usr/bin: the test can't take it away")
    done = machine.run()
    assert done.returncode == 1
    assert f"needs {missing}" in done.stderr
    assert machine.calls == []


def test_a_docker_that_does_not_run_is_named(machine: Machine) -> None:
    (machine.bin / "docker").write_text("#!/bin/sh\nexit 1\n")
    done = machine.run()
    assert done.returncode == 1
    assert "Docker does not answer" in done.stderr
    assert machine.calls == []
