"""What the operator is told about the Ray cluster that it makes: read from a YAML file, which the Helm chart writes.

`main` loads it, `builders.ray_cluster` and `kuberay` read it. It holds no secret: only names of Secrets.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tollway_operator.builders.pools import PodDefaults
from tollway_operator.resources import quantities

Toleration = dict[str, Any]


class _Base(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Pods(_Base):
    """Size and place of one kind of pod."""

    cpu: int | str = "1"
    memory: int | str = "2Gi"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()

    @property
    def cpu_milli(self) -> int:
        return quantities.whole_quantity(self.cpu, 1000)

    @property
    def memory_bytes(self) -> int:
        return quantities.whole_quantity(self.memory)


class GatewayPods(Pods):
    replicas: int = Field(default=2, ge=1, le=1000)
    client_address_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]{0,64}$")
    """The header in which a trusted proxy says who the client is; its last element counts."""


class ModelPods(_Base):
    """Pods of models; cpu and memory where a ModelDeployment doesn't say."""

    cpu: int | str = "1"
    memory: int | str = "4Gi"
    engine_images: dict[str, str] = {}
    gpu_resource: str = "nvidia.com/gpu"
    accelerator_label: str = "nvidia.com/gpu.product"
    gpu_memory_label: str = "nvidia.com/gpu.memory"
    gpu_tolerations: tuple[Toleration, ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
    cache: dict[str, Any] = Field(default_factory=lambda: {"emptyDir": {}})
    """A volume's source: where loaded weights are kept. With a claim or a hostPath, they outlive the pod."""


class Redis(_Base):
    """Where the head keeps its state, so that a lost head costs nothing."""

    address: str
    password_secret: str | None = None
    password_key: str = "redis-password"  # noqa: S105 - a key's name


class Autoscaler(_Base):
    cpu: int | str = "100m"
    memory: int | str = "512Mi"
    idle_seconds: int = Field(default=60, ge=1)
    """How long a pod without replicas is kept."""


class KubeRaySettings(_Base):
    name: str = Field(default="tollway", max_length=30)
    """Name of the Service, and what the RayClusters' names begin with."""

    namespace: str
    ray_version: str = "2.60.0"
    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    run_as_user: int | None = 10001
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    platform_secret: str = "tollway-platform"  # noqa: S105 - a name
    """Its entries: internal-token, for models; auth_token, for Ray."""

    ledger_secret: str = "tollway-ledger"  # noqa: S105 - a name
    ledger_key: str = "database-url"
    providers_secret: str = "tollway-providers"  # noqa: S105 - a name
    sources_secret: str = "tollway-sources"  # noqa: S105 - a name
    head: Pods = Pods(cpu="1", memory="4Gi")
    gateway: GatewayPods = GatewayPods()
    models: ModelPods = ModelPods()
    autoscaler: Autoscaler = Autoscaler()
    redis: Redis | None = None
    drain_seconds: int = Field(default=3_700, ge=0)
    """How long a replaced Ray cluster serves on for the requests that it has: longer than the longest of them."""

    @property
    def pod_defaults(self) -> PodDefaults:
        return PodDefaults(
            image=self.image,
            engine_images=self.models.engine_images,
            cpu_milli=quantities.whole_quantity(self.models.cpu, 1000),
            memory_bytes=quantities.whole_quantity(self.models.memory),
            tolerations=self.models.gpu_tolerations,
            namespace=self.namespace,
        )


def load(path: Path, namespace: str) -> KubeRaySettings:
    """For an operator in this namespace. ValueError, one line, if the file can't be read or says something unknown."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: not a mapping")
    try:
        return KubeRaySettings.model_validate({**content, "namespace": namespace})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
