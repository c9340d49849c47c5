"""Runs the real Helm on our chart, for tests/chart: the one of TOLLWAY_HELM, or that hack/binaries/build-helm makes."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from support.control_plane import ROOT

CHART = ROOT / "charts" / "tollway"

Manifest = dict[str, Any]


class HelmError(Exception):
    """Helm said no; the message is its stderr."""


class Helm:
    def __init__(self, kubeconfig: Path | None = None) -> None:
        built = subprocess.run(
            [str(ROOT / "hack/binaries/build-helm")], stdout=subprocess.PIPE, text=True, check=True, timeout=900
        )
        self._program = built.stdout.strip()
        self._kubeconfig = kubeconfig

    def run(self, *args: str, values: Mapping[str, Any] | None = None) -> str:
        """Its stdout; HelmError with its stderr when it fails. Values go through a file, as users give them."""
        with tempfile.TemporaryDirectory(prefix="tollway-helm-") as folder:
            if values is not None:
                (Path(folder) / "values.json").write_text(json.dumps(values))
                args = (*args, "-f", f"{folder}/values.json")
            done = subprocess.run(
                [self._program, *args],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "HOME": folder,
                    # A user's own cluster is never asked.
                    "KUBECONFIG": str(self._kubeconfig or Path(folder) / "none"),
                },
            )
        if done.returncode:
            raise HelmError(done.stderr)
        return done.stdout

    def template(
        self, values: Mapping[str, Any], *, name: str = "tollway", namespace: str = "tollway"
    ) -> list[Manifest]:
        """What an installation would apply, hooks too."""
        text = self.run("template", name, str(CHART), "--namespace", namespace, values=values)
        return [document for document in yaml.safe_load_all(text) if document]
