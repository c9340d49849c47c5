"""What the pods of a pool say about why they don't start: pure, over objects as the API server has them.

Called by `kuberay`; its answers become the conditions Scheduled and Ready of models.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tollway_operator.builders.pools import Demand
from tollway_operator.platform import PodProblem, PoolStatus

GROUP_LABEL = "ray.io/group"
CLUSTER_LABEL = "ray.io/cluster"
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_START_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
_LONGEST = 500

Object = Mapping[str, Any]


def by_group(pods: Iterable[Object], cluster: str) -> dict[str, list[Object]]:
    """Pods of one Ray cluster by worker group, the oldest first."""
    groups: dict[str, list[Object]] = defaultdict(list)
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        labels = pod["metadata"].get("labels") or {}
        if labels.get(CLUSTER_LABEL) == cluster:
            groups[str(labels.get(GROUP_LABEL))].append(pod)
    return dict(groups)


def pool_statuses(
    demands: Iterable[Demand],
    pods: Mapping[str, list[Object]],
    cluster: Object | None,
    nodes: Iterable[Object] | None,
    accelerator_label: str,
) -> dict[str, PoolStatus]:
    """`nodes` None: the operator may not look at them. `cluster` is the live RayCluster."""
    accelerators = None
    if nodes is not None:
        accelerators = {(node["metadata"].get("labels") or {}).get(accelerator_label) for node in nodes}
    quota = _quota(cluster)
    statuses = {}
    for demand in demands:
        own = pods.get(demand.pool.name, [])
        alive = [pod for pod in own if not pod["metadata"].get("deletionTimestamp")]
        problem, message = _problem(alive)
        accelerator = demand.pool.accelerator
        if problem == "WaitingForNode" and accelerator and accelerators is not None and accelerator not in accelerators:
            problem = "NoSuchAccelerator"
            there = ", ".join(sorted(filter(None, accelerators))) or "none"
            message = (
                f"no node has the label {accelerator_label}={accelerator} (those that nodes have: {there}); {message}"
            )
        if problem is None and quota and len(alive) < demand.minimum:
            problem, message = "QuotaExceeded", quota
        ready = sum(_is_ready(pod) for pod in alive)
        statuses[demand.pool.name] = PoolStatus(len(alive), ready, problem, message[:_LONGEST])
    return statuses


def gpu_memory(nodes: Iterable[Object] | None, accelerator_label: str, memory_label: str) -> dict[str, int]:
    """MiB of a GPU by accelerator; of two kinds of one name the smaller."""
    found: dict[str, int] = {}
    for node in nodes or ():
        labels = node["metadata"].get("labels") or {}
        name, mib = labels.get(accelerator_label), str(labels.get(memory_label, ""))
        if name and mib.isdecimal():
            found[name] = min(found.get(name, int(mib)), int(mib))
    return found


def ready_pods(pods: Iterable[Object]) -> int:
    return sum(_is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in pods)


def addresses(pods: Iterable[Object]) -> frozenset[str]:
    return frozenset(str(address) for pod in pods if (address := (pod.get("status") or {}).get("podIP")))


def _problem(pods: list[Object]) -> tuple[PodProblem | None, str]:
    """Of the newest pod that isn't ready: older ones may have been fine before."""
    for pod in reversed(pods):
        if _is_ready(pod):
            continue
        status = pod.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return "WaitingForNode", str(condition.get("message") or condition.get("reason") or "")
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason, message = waiting.get("reason"), str(waiting.get("message") or "")
            if reason in _IMAGE_REASONS:
                return "ImagePullFailed", f"{container.get('image')}: {message or reason}"
            if reason in _START_REASONS:
                return "PodFailed", f"{reason}: {message}"
        if status.get("phase") == "Failed":
            return "PodFailed", str(status.get("message") or status.get("reason") or "its container ended")
    return None, ""


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _quota(cluster: Object | None) -> str:
    """KubeRay's words about pods that the API server would not take."""
    for condition in ((cluster or {}).get("status") or {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = str(condition.get("message") or "")
            if "quota" in message:
                return message
    return ""
