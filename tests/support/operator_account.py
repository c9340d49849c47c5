"""The operator's ServiceAccount with the rights of operator/rbac.yaml, whole or without one of them; for tests/api."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.control_plane import ROOT, ControlPlane

RBAC = ROOT / "operator" / "rbac.yaml"


@dataclass(frozen=True, slots=True)
class Right:
    """One verb of one resource in one rule of the file."""

    role: str  # ClusterRole or Role
    rule: int
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.role}[{self.rule}]: {self.verb} {self.resource}"


@dataclass(frozen=True, slots=True)
class Account:
    namespace: str  # the operator's own
    token: str
    kubeconfig: Path


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(RBAC.read_text()))


def rights() -> Iterator[Right]:
    """Every right of the file."""
    for document in documents():
        for index, rule in enumerate(document.get("rules", ())):
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield Right(document["kind"], index, resource, verb)


def make_account(
    plane: ControlPlane, *, without: Right | None = None, watched: Sequence[str] = (), namespace: str | None = None
) -> Account:
    """An account in a namespace of its own (or the one given). With `watched` it has no right outside of those and its
    own: the ClusterRole is bound in each of them."""
    own = namespace or plane.fresh_namespace("operator")
    made: list[dict[str, Any]] = []
    for document in documents():
        meta = document["metadata"]
        if "namespace" in meta:
            meta["namespace"] = own
        else:
            meta["name"] = f"{meta['name']}-{own}"
        if "roleRef" in document:
            if document["roleRef"]["kind"] == "ClusterRole":
                document["roleRef"]["name"] += f"-{own}"
            for subject in document["subjects"]:
                subject["namespace"] = own
        if document["kind"] == "ClusterRoleBinding" and watched:
            for scope in watched:
                binding = copy.deepcopy(document)
                binding["kind"] = "RoleBinding"
                binding["metadata"] = {"name": f"tollway-operator-{own}", "namespace": scope}
                made.append(binding)
            continue
        if without is not None and document["kind"] == without.role:
            document["rules"] = list(_without(document["rules"], without))
        made.append(document)
    plane.apply(*made)
    token = plane.token_for("tollway-operator", own)
    return Account(own, token, plane.kubeconfig_for(token))


def _without(rules: list[dict[str, Any]], right: Right) -> Iterator[dict[str, Any]]:
    for index, rule in enumerate(rules):
        if index != right.rule:
            yield rule
            continue
        others = [resource for resource in rule["resources"] if resource != right.resource]
        verbs = [verb for verb in rule["verbs"] if verb != right.verb]
        if others:
            yield {**rule, "resources": others}
        if verbs:
            yield {**rule, "resources": [right.resource], "verbs": verbs}
