"""Where applications run, as the reconcile sees it: a Ray that can also be told which pods models need.

Two implementations: `existing_ray` (a Ray cluster that somebody else runs) and `kuberay` (one that we make).
`platform_link` calls `shape` behind the reconcile's back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tollway_operator.builders.pools import Demand
from tollway_operator.ports import Ray

PodProblem = Literal["NoSuchAccelerator", "WaitingForNode", "QuotaExceeded", "ImagePullFailed", "PodFailed"]


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Pods of a pool in the cluster that serves; `problem` is why the newest of them doesn't start."""

    pods: int = 0
    ready: int = 0
    problem: PodProblem | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    pools: Mapping[str, PoolStatus] = field(default_factory=dict)
    problem: str = ""
    """What keeps the whole platform from being as it should, in a sentence."""

    gpu_mib: Mapping[str, int] = field(default_factory=dict)
    """Memory of a GPU, by accelerator, as nodes say it."""

    upgrade: str = ""
    """A second Ray cluster is coming up to replace the serving one: what it still waits for."""


class Platform(Ray, Protocol):
    async def shape(self, demands: Sequence[Demand]) -> PlatformStatus:
        """Brings the pods nearer to what is wanted, and says how they are. Called again and again."""

    async def close(self) -> None: ...
