"""Fixtures of the chart's tests: the real Helm, and a real Kubernetes API server that judges what it renders."""

from collections.abc import Iterator

import pytest
from support.control_plane import ROOT, ControlPlane, start
from support.helm import Helm


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Without any cluster."""
    return Helm()


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """With our CRDs, applied by somebody else than the chart."""
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as running:
        yield running


@pytest.fixture(scope="session")
def bare_control_plane() -> Iterator[ControlPlane]:
    """Without our CRDs: the chart brings them."""
    with start() as running:
        yield running
