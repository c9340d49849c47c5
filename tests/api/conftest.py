"""Fixtures of the tests against a real Kubernetes API server."""

from collections.abc import Iterator

import pytest
from support.control_plane import ROOT, ControlPlane, start


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One for the whole session, with our CRDs in it; tests keep apart by a `fresh_namespace` each."""
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    return control_plane.fresh_namespace()
