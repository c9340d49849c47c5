"""The chart's life on a real API server: installed, upgraded, uninstalled, installed again. No pod runs here, so hooks,
which are pods, are left out; hack/e2e has them on a real cluster.
"""

import base64
import json
import re
import uuid

import pytest
from support.control_plane import ROOT, ControlPlane
from support.helm import CHART, Helm, HelmError

KINDS = (
    "deployments,statefulsets,configmaps,services,serviceaccounts,secrets,roles,rolebindings,networkpolicies,pdb,leases"
)


def _secret(plane: ControlPlane, namespace: str, name: str) -> dict[str, str]:
    data = json.loads(plane.kubectl("-n", namespace, "get", "secret", name, "-o", "json"))["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_upgrades_and_uninstalling_keep_what_cannot_be_made_anew(bare_control_plane: ControlPlane) -> None:
    plane, helm = bare_control_plane, Helm(bare_control_plane.kubeconfig)
    namespace = plane.fresh_namespace("life")
    install = ("install", "tollway", str(CHART), "--namespace", namespace)
    notes = helm.run(*install)
    assert "kubectl -n " + namespace + " port-forward service/tollway 8000:80" in notes
    for name in re.findall(r"(?:modeldeployment|apikey)/(\S+)", notes):  # what it says to wait for is what it applies
        assert f"name: {name}" in "".join(file.read_text() for file in (ROOT / "examples/quickstart").glob("*.yaml"))
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/plans.tollway.dev")
    tokens, ledger = (_secret(plane, namespace, f"tollway-{name}") for name in ("platform", "ledger"))
    assert all(len(tokens[name]) == 48 for name in ("internal-token", "auth_token"))
    password = ledger["password"]
    assert ledger["database-url"] == f"postgresql://tollway:{password}@tollway-postgresql.{namespace}:5432/tollway"
    plan = {"apiVersion": "tollway.dev/v1alpha1", "kind": "Plan", "metadata": {"name": "gold"}, "spec": {}}
    plane.apply(plan, namespace=namespace)

    helm.run("upgrade", "tollway", str(CHART), "--namespace", namespace, values={"operator": {"replicas": 3}})
    assert _secret(plane, namespace, "tollway-platform") == tokens
    assert _secret(plane, namespace, "tollway-ledger") == ledger
    deployment = json.loads(plane.kubectl("-n", namespace, "get", "deployment", "tollway-operator", "-o", "json"))
    assert deployment["spec"]["replicas"] == 3

    helm.run("uninstall", "tollway", "--namespace", namespace, "--no-hooks")
    left = [
        line.split("/", 1)
        for line in plane.kubectl("-n", namespace, "get", KINDS, "-o", "name").split()
        if line not in ("serviceaccount/default", "configmap/kube-root-ca.crt")
    ]
    assert left == [["secret", "tollway-ledger"]]  # the database's volume opens with this password only
    assert plane.kubectl("-n", namespace, "get", "plans", "-o", "name").split() == ["plan.tollway.dev/gold"]

    helm.run(*install)
    assert _secret(plane, namespace, "tollway-ledger") == ledger
    assert _secret(plane, namespace, "tollway-platform") != tokens


def test_somebody_with_rights_in_one_namespace_installs_it(control_plane: ControlPlane) -> None:
    """The CRDs are there; the user may do all in the namespace and nothing outside of it."""
    plane = control_plane
    namespace, user = plane.fresh_namespace("team"), f"user-{uuid.uuid4().hex[:6]}"
    plane.service_account(namespace, user)
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "everything"}
    subjects = [{"kind": "ServiceAccount", "name": user, "namespace": namespace}]
    version = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "everything"}}
    plane.apply(
        {**version, "kind": "Role", "rules": rules},
        {**version, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects},
        namespace=namespace,
    )
    helm = Helm(plane.kubeconfig_for(plane.token_for(user, namespace)))
    install = ("install", "tollway", str(CHART), "--namespace", namespace)
    with pytest.raises(HelmError, match="forbidden"):
        helm.run(*install)
    values = {"namespaces": [namespace], "crds": {"install": False}, "rbac": {"readNodes": False}}
    helm.run("upgrade", "--install", *install[1:], values=values)
    assert "tollway-operator" in plane.kubectl("-n", namespace, "get", "deployments")
    account = f"--as=system:serviceaccount:{namespace}:tollway-operator"
    for verb, resource, elsewhere in (
        ("list", "modeldeployments.tollway.dev", False),
        ("patch", "apikeys.tollway.dev/status", False),
        ("create", "secrets", False),
        ("list", "modeldeployments.tollway.dev", True),
        ("get", "secrets", True),
    ):
        place = "default" if elsewhere else namespace
        verb_resource = resource.split("/")
        sub = [f"--subresource={verb_resource[1]}"] if len(verb_resource) > 1 else []
        said = plane.kubectl("auth", "can-i", verb, verb_resource[0], *sub, "-n", place, account, check=False)
        assert said.splitlines()[-1] == ("no" if elsewhere else "yes"), (verb, resource, place)
