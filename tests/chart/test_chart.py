"""What the chart renders, for the sets of values that people use: judged by a real API server, by restricted Pod
Security, and by the operator's own readers of what is meant for it. Nothing here starts a pod.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.control_plane import ROOT, ControlPlane
from support.helm import CHART, Helm, HelmError, Manifest

from tollway_operator.builders.pools import Demand, pool_of
from tollway_operator.builders.ray_cluster import PLATFORM_LABEL, ray_cluster
from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.kuberay_settings import load as load_kuberay
from tollway_operator.operator_settings import OperatorSettings, settings_from_env
from tollway_operator.resources.model_deployment import ModelDeployment

Values = Mapping[str, Any]

MONITORING = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
SETS: dict[str, Values] = {
    "defaults, which are for trials: PostgreSQL and Redis of the chart's": {},
    "a database and a Redis of one's own": {
        "ledger": {"existingSecret": "db", "existingSecretKey": "url", "postgresql": {"enabled": False}},
        "redis": {"externalAddress": "redis.data:6379", "externalPasswordSecret": "redis-password"},
        "platformSecret": {"existing": "tokens"},
    },
    "without cluster rights": {
        "namespaces": ["team-a", "team-b"],
        "crds": {"install": False},
        "rbac": {"readNodes": False},
    },
    "somebody else's Ray": {
        "ray": {"existingAddress": "http://ray-head.ml:8265"},
        "baseUrl": "https://m.example.com/v1",
    },
    "an Ingress with TLS": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "host": "m.example.com",
            "tlsSecret": "certificate",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        }
    },
    "a route of the Gateway API": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "infra"}],
            "hostnames": ["m.example.com"],
        }
    },
    "metrics, and network policies that name who may come": {
        "metrics": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {"clients": [{"namespaceSelector": {}}], "prometheus": MONITORING},
    },
    "no volumes": {"redis": {"storage": ""}, "ledger": {"postgresql": {"storage": ""}}},
    "no network policies, no Redis, one of each": {
        "networkPolicy": {"enabled": False},
        "redis": {"enabled": False},
        "operator": {"replicas": 1},
        "ray": {"gateway": {"replicas": 1}},
    },
    "GPUs, places, pull secrets": {
        "imagePullSecrets": ["registry"],
        "images": {"operator": {"repository": "registry.example.com/tollway-operator", "tag": "1"}},
        "operator": {
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "env": {"TOLLWAY_ACCELERATORS": "NVIDIA-H100"},
            "limits": {"cpu": 1, "memory": "1Gi"},
        },
        "ray": {
            "head": {"cpu": 2, "memory": "8Gi", "nodeSelector": {"pool": "system"}},
            "gateway": {
                "replicas": 3,
                "tolerations": [{"operator": "Exists"}],
                "clientAddressHeader": "X-Forwarded-For",
            },
            "models": {
                "engineImages": {"vllm": "registry.example.com/tollway-vllm:1"},
                "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
            },
            "runAsUser": None,
            "env": {"HF_HUB_OFFLINE": "1"},
        },
        "ledger": {"postgresql": {"storageClass": "fast"}},
        "redis": {"storageClass": "fast"},
    },
}
# Kinds that the API server doesn't know: KubeRay's aren't rendered at all, these are checked by their shape.
FOREIGN = {"gateway.networking.k8s.io", "monitoring.coreos.com"}
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "PriorityClass"}
DEFAULTS = "defaults, which are for trials: PostgreSQL and Redis of the chart's"


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> str:
    """A namespace that takes only pods of the restricted Pod Security Standard."""
    name = control_plane.fresh_namespace("restricted")
    control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return name


def test_helm_lint_finds_nothing(helm: Helm) -> None:
    said = helm.run("lint", "--strict", str(CHART))
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_an_api_server_takes_all_of_it(
    helm: Helm, control_plane: ControlPlane, restricted: str, values: Values
) -> None:
    for namespace in values.get("namespaces", ()):
        control_plane.kubectl("create", "namespace", namespace, check=False)
    rendered = helm.template(values, namespace=restricted)
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in rendered]
    assert len(names) == len(set(names)), "something is rendered twice"
    known = [m for m in rendered if m["apiVersion"].split("/")[0] not in FOREIGN]
    items = [*known, *_pods(rendered)]
    for item in items:
        if item["kind"] not in CLUSTER_WIDE:
            item["metadata"].setdefault("namespace", restricted)
    # Strictly: an unknown or a repeated field is an error.
    said = control_plane.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"),
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}),
        check=False,
    )
    lines = said.splitlines()
    assert [line for line in lines if not line.endswith("(server dry run)")] == []  # neither errors nor warnings
    assert len(lines) == len(items)


def test_restricted_pod_security_is_really_asked(control_plane: ControlPlane, restricted: str) -> None:
    """The test above would be worth nothing otherwise."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    said = control_plane.kubectl(
        "apply", "--dry-run=server", "-n", restricted, "-f", "-", stdin=json.dumps(pod), check=False
    )
    assert 'violates PodSecurity "restricted' in said


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_the_pods_that_kuberay_gets_are_restricted_too(
    helm: Helm, control_plane: ControlPlane, restricted: str, values: Values, tmp_path: Path
) -> None:
    settings = _kuberay(helm.template(values, namespace=restricted), tmp_path, restricted)
    if settings is None:
        assert "existingAddress" in values["ray"]
        return
    spec = {"engine": {"name": "vllm"}, "source": {"uri": "hf://a/b"}, "resources": {"gpus": 1, "accelerator": "H100"}}
    model = ModelDeployment.model_validate({"metadata": {"name": "m", "namespace": "n"}, "spec": spec})
    demand = Demand(pool=pool_of(model, settings.pod_defaults), minimum=1, maximum=2)
    cluster = ray_cluster(settings, [demand], None, busy=(), pods={})
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert len(groups) == 3
    templates = [group["template"] for group in groups]
    users = {template["spec"]["securityContext"].get("runAsUser") for template in templates}
    assert users == {values.get("ray", {}).get("runAsUser", 10001)}
    pods = [_pod(f"ray-{number}", template) for number, template in enumerate(templates)]
    for pod in pods:
        pod["spec"]["restartPolicy"] = "Always"
    said = control_plane.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", restricted, "-f", "-"),
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}),
    )
    assert said.count("(server dry run)") == 3


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_the_operator_understands_what_it_is_told(helm: Helm, values: Values, tmp_path: Path) -> None:
    rendered = helm.template(values)
    settings = _operator(rendered, tmp_path)
    name = _one(rendered, "Deployment")["metadata"]["name"]
    assert settings.lease_name == settings.deployment == name == "tollway-operator"
    assert settings.namespaces == tuple(values.get("namespaces", ()))
    assert settings.scope == "tollway/tollway"  # two releases may share a database
    if address := values.get("ray", {}).get("existingAddress"):
        assert settings.kuberay is None
        assert settings.ray_address == address
        return
    assert settings.kuberay is not None
    assert settings.kuberay.gateway.replicas == values.get("ray", {}).get("gateway", {}).get("replicas", 2)
    # What it reads and what the roles and policies name are the same things.
    assert settings.providers_secret == settings.kuberay.providers_secret == "tollway-providers"
    assert settings.sources_secret == settings.kuberay.sources_secret == "tollway-sources"
    assert settings.memory_name == "tollway-memory"
    budgets = {m["metadata"]["name"]: m for m in rendered if m["kind"] == "PodDisruptionBudget"}
    if settings.kuberay.gateway.replicas > 1:
        selector = budgets["tollway-gateway"]["spec"]["selector"]["matchLabels"]
        gateway = ray_cluster(settings.kuberay, [], None, busy=(), pods={})["spec"]["workerGroupSpecs"][0]
        assert selector.items() <= gateway["template"]["metadata"]["labels"].items()
        assert selector[PLATFORM_LABEL] == settings.kuberay.name


def test_gateways_alone_hear_which_header_names_a_client(helm: Helm, tmp_path: Path) -> None:
    for values in (SETS["GPUs, places, pull secrets"], {}):
        settings = _operator(helm.template(values), tmp_path)
        assert settings.kuberay is not None
        groups = ray_cluster(settings.kuberay, [], None, busy=(), pods={})["spec"]
        (gateway,) = groups["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        (head,) = groups["headGroupSpec"]["template"]["spec"]["containers"]
        named = [entry["value"] for entry in gateway["env"] if entry["name"] == "TOLLWAY_CLIENT_ADDRESS_HEADER"]
        assert named == (["X-Forwarded-For"] if values else [])
        assert "TOLLWAY_CLIENT_ADDRESS_HEADER" not in {entry["name"] for entry in head["env"]}


def test_what_clients_use(helm: Helm, tmp_path: Path) -> None:
    expected = {
        DEFAULTS: "http://tollway.tollway.svc/v1",
        "an Ingress with TLS": "https://m.example.com/v1",
        "a route of the Gateway API": "https://m.example.com/v1",
        "somebody else's Ray": "https://m.example.com/v1",
    }
    for name, url in expected.items():
        assert _operator(helm.template(SETS[name]), tmp_path).reconcile.base_url == url


def test_two_operators_one_budget(helm: Helm) -> None:
    rendered = helm.template({})
    deployment = _one(rendered, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    budget = next(m for m in rendered if m["kind"] == "PodDisruptionBudget" and "operator" in m["metadata"]["name"])
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


@pytest.mark.parametrize("values", [{}, SETS["somebody else's Ray"]], ids=["KubeRay", "existing Ray"])
def test_rights_are_those_of_the_operators_own_file(helm: Helm, values: Values) -> None:
    """tests/api/test_rbac.py shows that operator/rbac.yaml is enough, and the least, but for KubeRay's part."""
    ours = {
        m["kind"]: m["rules"] for m in yaml.safe_load_all((ROOT / "operator/rbac.yaml").read_text()) if "rules" in m
    }
    rendered = helm.template(values)
    everywhere = [m for m in rendered if m["kind"] == "ClusterRole" and not m["metadata"]["name"].endswith("-nodes")]
    own = [m for m in rendered if m["kind"] == "Role" and m["metadata"]["name"] == "tollway-operator"]
    assert [m["rules"] for m in everywhere] == [ours["ClusterRole"]]
    files = (CHART / "files/rules.yaml").read_text()
    names = {"operator": "tollway-operator", "name": "tollway"}
    names |= {"providersSecret": "tollway-providers", "sourcesSecret": "tollway-sources"}
    for text, name in names.items():
        files = files.replace(f'{{{{ include "tollway.{text}" . }}}}', name)
    pods = yaml.safe_load(files)["pods"] if not values else []
    assert [m["rules"] for m in own] == [[*ours["Role"], *pods]]


def test_a_role_in_each_namespace_gives_what_the_cluster_role_gives(helm: Helm) -> None:
    rendered = helm.template(SETS["without cluster rights"])
    assert not [m for m in rendered if m["kind"] in CLUSTER_WIDE]
    everywhere = next(m for m in helm.template({}) if m["kind"] == "ClusterRole")
    roles = {m["metadata"]["namespace"]: m for m in rendered if m["kind"] == "Role" and "namespace" in m["metadata"]}
    assert {name: role["rules"] for name, role in roles.items()} == dict.fromkeys(
        ("team-a", "team-b"), everywhere["rules"]
    )


def test_roles_may_be_somebody_elses_business(helm: Helm) -> None:
    kinds = {m["kind"] for m in helm.template({"rbac": {"create": False}})}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert "ServiceAccount" in kinds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ray": {"gatway": {"replicas": 2}}}, ["/ray", "'gatway' not allowed"]),
        ({"replicas": 2}, ["'replicas' not allowed"]),
        ({"operator": {"replicas": "two"}}, ["/operator/replicas", "want integer"]),
        ({"operator": {"logLevel": "loud"}}, ["/operator/logLevel", "'debug', 'info', 'warning', 'error'"]),
        ({"ray": {"gateway": {"replicas": 0}}}, ["/ray/gateway/replicas", "minimum"]),
        ({"ray": {"gateway": {"clientAddressHeader": "X Real"}}}, ["/ray/gateway/clientAddressHeader", "pattern"]),
        ({"ledger": {"postgresql": {"enabled": False}}}, ["the ledger has no database: set ledger.existingSecret"]),
        ({"ledger": {"usageDays": 30}}, ["ledger.usageDays must be 0 (for ever) or at least 45"]),
        ({"ledger": {"usageDays": 10**6}}, ["ledger.usageDays must be 0 (for ever) or at most 36500"]),
        ({"ingress": {"enabled": True}}, ["ingress.host is missing"]),
        ({"httpRoute": {"enabled": True, "hostnames": ["a"]}}, ["httpRoute.parentRefs is empty"]),
        ({"httpRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}}, ["httpRoute.hostnames is empty"]),
        ({"ray": {"existingAddress": "http://ray:8265"}}, ["baseUrl is missing"]),
        (
            {
                "ray": {"existingAddress": "http://r"},
                "baseUrl": "http://m/v1",
                "ingress": {"enabled": True, "host": "m"},
            },
            ["not with ray.existingAddress"],
        ),
    ],
)
def test_wrong_values_are_refused_with_their_names(helm: Helm, values: Values, said: list[str]) -> None:
    with pytest.raises(HelmError) as refused:
        helm.template(values)
    for text in said:
        assert text in str(refused.value)


def test_long_release_names_are_refused(helm: Helm) -> None:
    helm.template({}, name="a" * 30)
    with pytest.raises(HelmError, match="more than 30 characters"):
        helm.template({}, name="a" * 31)


def test_an_ingress_leads_to_the_gateways_public_paths_only(helm: Helm) -> None:
    ingress = _one(helm.template(SETS["an Ingress with TLS"]), "Ingress")
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    assert {path["path"] for path in paths} == {"/v1", "/api/v1", "/docs", "/openapi.json"}
    assert {path["backend"]["service"]["name"] for path in paths} == {"tollway"}
    assert ingress["spec"]["tls"] == [{"hosts": ["m.example.com"], "secretName": "certificate"}]


def test_kinds_of_others_have_their_shape(helm: Helm) -> None:
    """No API server here knows them."""
    route = _one(helm.template(SETS["a route of the Gateway API"]), "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "infra"}]
    rule = route["spec"]["rules"][0]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1", "/api/v1", "/docs", "/openapi.json"]
    assert rule["backendRefs"] == [{"name": "tollway", "port": 80}]
    rendered = helm.template(SETS["metrics, and network policies that name who may come"])
    monitors = [m for m in rendered if m["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {m["kind"] for m in monitors} == {"ServiceMonitor", "PodMonitor", "ScrapeConfig"}
    assert all(m["metadata"]["labels"]["release"] == "prometheus" for m in monitors)
    selector = _one(monitors, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    service = next(m for m in rendered if m["kind"] == "Service" and m["metadata"]["name"] == "tollway-operator")
    assert selector.items() <= service["metadata"]["labels"].items()
    assert {port["name"] for port in service["spec"]["ports"]} == {"http"}


def test_who_may_talk_to_whom(helm: Helm) -> None:
    rendered = helm.template(SETS["metrics, and network policies that name who may come"])
    policies = {m["metadata"]["name"]: m["spec"] for m in rendered if m["kind"] == "NetworkPolicy"}
    names = ("ray", "head", "gateway", "operator", "postgresql", "redis")
    assert policies.keys() == {f"tollway-{name}" for name in names}
    assert all(policy["policyTypes"] == ["Ingress"] for policy in policies.values())
    [rule] = policies["tollway-gateway"]["ingress"]
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]
    test = next(m for m in rendered if m["kind"] == "Pod")  # helm test must get through where clients are named
    selectors = [item["podSelector"]["matchLabels"] for item in rule["from"] if "podSelector" in item]
    assert any(selector.items() <= test["metadata"]["labels"].items() for selector in selectors)
    [rule] = policies["tollway-operator"]["ingress"]
    assert rule["from"] == MONITORING
    # Without a name in networkPolicy.prometheus nobody reaches the operator.
    unnamed = {m["metadata"]["name"]: m["spec"] for m in helm.template({}) if m["kind"] == "NetworkPolicy"}
    assert unnamed["tollway-operator"]["ingress"] == []


def _pods(rendered: list[Manifest]) -> list[Manifest]:
    """The pods that workloads would make."""
    workloads = [m for m in rendered if m["kind"] in ("Deployment", "StatefulSet", "Job")]
    return [_pod(f"{m['kind'].lower()}-{m['metadata']['name']}", m["spec"]["template"]) for m in workloads]


def _pod(name: str, template: Mapping[str, Any]) -> Manifest:
    spec = json.loads(json.dumps(template["spec"]))
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", ())}
    claims = sorted(mounted - {volume["name"] for volume in spec.get("volumes", ())})
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    spec["volumes"] = [*spec.get("volumes", ()), *volumes]
    labels = template["metadata"].get("labels", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def _one(rendered: list[Manifest], kind: str) -> Manifest:
    [found] = [m for m in rendered if m["kind"] == kind]
    return found


def _kuberay(rendered: list[Manifest], folder: Path, namespace: str) -> KubeRaySettings | None:
    for manifest in rendered:
        if manifest["kind"] == "ConfigMap" and "kuberay.yaml" in manifest["data"]:
            (folder / "kuberay.yaml").write_text(manifest["data"]["kuberay.yaml"])
            return load_kuberay(folder / "kuberay.yaml", namespace)
    return None


def _operator(rendered: list[Manifest], folder: Path) -> OperatorSettings:
    """As the operator's process would read its environment and files."""
    container = _one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = dict(_environment(container))
    if "TOLLWAY_KUBERAY_FILE" in environment:
        assert environment["TOLLWAY_KUBERAY_FILE"] == "/etc/tollway/kuberay/kuberay.yaml"
        _kuberay(rendered, folder, "tollway")
        environment["TOLLWAY_KUBERAY_FILE"] = str(folder / "kuberay.yaml")
    (folder / "database-url").write_text("postgresql://user:password@host:5432/tollway\n")
    return settings_from_env({**environment, "TOLLWAY_SECRETS_DIR": str(folder)})


def _environment(container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for item in container["env"]:
        yield item["name"], item.get("value", "tollway")  # (the one without: the pod's namespace)
