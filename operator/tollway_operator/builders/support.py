"""What of the API this release carries out: the one table of fields that it refuses, read by the builders.

A field is here because nothing reads it yet. Its object says UnsupportedField and keeps its last published version,
so that no limit goes unread. Remove a line together with the change that makes the field work.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tollway_operator.observed import Problem
from tollway_operator.ports import Kind
from tollway_operator.resources.common import Resource

_EMBEDDED_IGNORES: Mapping[str, Callable[[Any], bool]] = {
    "spec.engine.image": lambda md: md.spec.engine.image is not None,
    "spec.resources": lambda md: md.spec.resources is not None,
}
"""Meaningless on one machine: ignored with a notice (API.md section 5)."""

_UNSUPPORTED: Mapping[Kind, Mapping[str, Callable[[Any], bool]]] = {
    "ModelDeployment": {
        "spec.remote.protocol": lambda md: md.spec.remote is not None and md.spec.remote.protocol != "OpenAI",
    },
    "Plan": {
        "spec.limits.fileSize": lambda plan: plan.spec.limits is not None and plan.spec.limits.file_size is not None,
        "spec.limits.storage": lambda plan: plan.spec.limits is not None and plan.spec.limits.storage is not None,
    },
    "ApiKey": {},
}

_UNSUPPORTED_IN_EXISTING_RAY: Mapping[str, Callable[[Any], bool]] = {
    "spec.engine.image": lambda md: md.spec.engine.image is not None,
    "spec.resources.nodeSelector": lambda md: bool(md.spec.pod.node_selector),
    "spec.resources.tolerations": lambda md: bool(md.spec.pod.tolerations),
    "spec.source.secretRef": lambda md: md.spec.source is not None and md.spec.source.secret_ref is not None,
}
"""They need worker groups of their own, which an existing Ray cluster can't be given."""


def unsupported(kind: Kind, resource: Resource, *, embedded: bool, pods: bool = False) -> Problem | None:
    """The refusal of an object that uses fields of these tables; None if it uses none. `pods`: we make them."""
    table = dict(_UNSUPPORTED[kind])
    if kind == "ModelDeployment" and not embedded and not pods:
        table.update(_UNSUPPORTED_IN_EXISTING_RAY)
    used = [path for path, is_used in table.items() if is_used(resource)]
    if not used:
        return None
    return Problem("UnsupportedField", f"this release doesn't carry out {', '.join(used)}; remove it")


def ignored(resource: Resource) -> tuple[str, ...]:
    """The fields of a ModelDeployment that `tollway up` ignores."""
    return tuple(path for path, is_used in _EMBEDDED_IGNORES.items() if is_used(resource))
