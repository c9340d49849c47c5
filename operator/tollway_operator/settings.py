"""What a reconcile must know besides the objects; made by the command line (`tollway up`, `tollway operator`).

Plain values: the environment is read where the command line is, never here and never at import.
"""

from dataclasses import dataclass

from tollway_operator.builders.pools import PodDefaults


@dataclass(frozen=True, slots=True)
class Settings:
    """Intervals are in seconds."""

    base_url: str
    """OPENAI_BASE_URL of the generated Secrets: what clients use, such as https://models.example.com/v1."""

    models_url: str = ""
    """Where a gateway replica reaches Serve's own HTTP port; a model answers under /_models/NAMESPACE.NAME/v1. Empty:
    on its own node, at the port that Ray names."""

    embedded: bool = False
    """One machine (`tollway up`): replicas ask for little CPU, and pods' fields (resources, nodeSelector, image) are
    ignored with a notice."""

    gateway_replicas: int = 1
    gateway_max_ongoing_requests: int = 2_000
    gateway_cpus: float = 1.0
    accelerators: frozenset[str] = frozenset()
    """What this Ray cluster has, by the names that `resources.accelerator` uses; empty: no GPU at all."""

    pods: PodDefaults | None = None
    """What pods get that are made for models; None where nobody makes any: on one machine, in an existing Ray."""

    allow_mass_revocation: bool = False
    """Lets one pass withdraw more than half of the published keys because their ApiKeys are gone."""

    slow_interval: float = 30.0
    fast_interval: float = 2.0
    full_interval: float = 300.0
    usage_interval: float = 300.0
