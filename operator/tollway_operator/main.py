"""`tollway operator`: the reconcile over a Kubernetes API server; called by the command line, and nobody else.

Kopf watches, a Lease decides which replica works, and a small server of our own answers probes and Prometheus.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tollway_operator.settings import Settings

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Everything that `tollway operator` can be told; each field is also the environment variable TOLLWAY_<FIELD>."""

    database_url: str = field(repr=False)  # holds a password
    reconcile: Settings
    namespaces: tuple[str, ...] = ()  # watched; empty: all of the cluster
    namespace: str = "tollway"  # our own: the Lease, the memory and the platform Secret
    ray_address: str = "http://127.0.0.1:8265"
    ray_token: str | None = field(default=None, repr=False)
    listen: str = "0.0.0.0:8080"  # noqa: S104 - probes come from the node, metrics from Prometheus
    lease_name: str = "tollway-operator"
    lease_seconds: float = 15.0
    platform_secret: str = "tollway-platform"  # noqa: S105 - a name
    memory_name: str = "tollway-memory"
    log_level: str = "info"


def settings_from_env(env: Mapping[str, str]) -> OperatorSettings:
    """Reads TOLLWAY_* variables. ValueError with one clear line for a missing or wrong one."""
    raise NotImplementedError


def run_operator(settings: OperatorSettings) -> int:
    """Runs until SIGTERM or SIGINT; answers the process's exit status: 0, or 1 after an error that a restart may cure."""
    raise NotImplementedError
