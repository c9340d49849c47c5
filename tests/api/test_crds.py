"""The CRDs on a real API server: it takes them, and gives the verdict that Python gives, in the same words."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import resource_corpus as corpus
from support.control_plane import ROOT, ApiError, ControlPlane

from tollway_operator import crd
from tollway_operator.resources import Invalid, Metadata, check_update, spec_of, validate
from tollway_operator.resources.conditions import CONDITIONS
from tollway_operator.resources.load import load
from tollway_operator.resources.validate import KINDS

PLURALS = {kind.name: kind.plural for kind in crd.KINDS}
CHECKED_LATER = "some validation rules were not checked"


def path(kind: str, namespace: str, name: str = "", query: str = "dryRun=All&fieldValidation=Strict") -> str:
    return f"/apis/tollway.dev/v1alpha1/namespaces/{namespace}/{PLURALS[kind]}{'/' if name else ''}{name}?{query}"


def document(kind: str, name: str, spec: Any) -> dict[str, Any]:
    written = {"apiVersion": "tollway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}}
    return written if spec is None else {**written, "spec": spec}


def causes(refusal: ApiError) -> list[tuple[str, str]]:
    """Field ("" for the whole object) and message of everything that the API server found wrong."""
    status = json.loads(str(refusal).partition(": ")[2])
    return [
        (cause.get("field", "").replace("<nil>", ""), cause["message"])
        for cause in status["details"].get("causes", [])
        if CHECKED_LATER not in cause["message"]
    ]


@pytest.mark.parametrize("case", corpus.GOOD, ids=lambda case: case.label)
def test_good_objects_are_stored_as_python_reads_them(control_plane: ControlPlane, case: corpus.Good) -> None:
    stored = control_plane.request("POST", path(case.kind, "default"), document(case.kind, case.name, case.spec))
    read = validate(case.kind, Metadata(name=case.name), case.spec)  # type: ignore[arg-type] # the corpus has plain strings
    assert not isinstance(read, Invalid), read
    assert _without_empty(stored["spec"]) == _without_empty(spec_of(read))
    # What comes back from the cluster reads the same: the operator sees what `tollway up` sees.
    again = validate(case.kind, Metadata(name=case.name), stored["spec"])  # type: ignore[arg-type] # as above
    assert again == read


def _without_empty(value: Any) -> Any:
    """The API server keeps an empty list or object that was written; to every reader it is an absent one."""
    if isinstance(value, dict):
        cleaned = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item not in ({}, [])}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", corpus.BAD, ids=lambda case: case.label)
def test_bad_objects_are_refused_in_the_words_of_python(control_plane: ControlPlane, case: corpus.Bad) -> None:
    with pytest.raises(ApiError) as refusal:
        control_plane.request("POST", path(case.kind, "default"), document(case.kind, case.name, case.spec))
    assert refusal.value.status == 422
    assert any(field == case.field and case.message in message for field, message in causes(refusal.value)), causes(
        refusal.value
    )
    assert all("evaluation error" not in message and "no such" not in message for _, message in causes(refusal.value))


@pytest.mark.parametrize(("kind", "spec", "fields"), corpus.UNKNOWN)
def test_unknown_fields_are_refused(
    control_plane: ControlPlane, kind: str, spec: dict[str, Any], fields: tuple[str, ...]
) -> None:
    with pytest.raises(ApiError) as refusal:
        control_plane.request("POST", path(kind, "default"), document(kind, "x", spec))
    assert refusal.value.status == 400
    for field in fields:
        assert f'unknown field \\"{field}\\"' in str(refusal.value)


@pytest.mark.parametrize(("label", "old", "new", "allowed"), corpus.UPDATES)
def test_updates(
    control_plane: ControlPlane, namespace: str, label: str, old: dict[str, Any], new: dict[str, Any], allowed: bool
) -> None:
    name = label
    control_plane.request("POST", path("ModelDeployment", namespace, query=""), document("ModelDeployment", name, old))
    target = path("ModelDeployment", namespace, name, query="fieldManager=t&force=true")
    before, after = (validate("ModelDeployment", Metadata(name=name), spec) for spec in (old, new))
    assert not isinstance(before, Invalid)
    assert not isinstance(after, Invalid)
    in_python = check_update(before, after)
    assert (in_python is None) == allowed
    current = control_plane.request("GET", path("ModelDeployment", namespace, name, query=""))
    body = {
        **document("ModelDeployment", name, new),
        "metadata": {"name": name, "resourceVersion": current["metadata"]["resourceVersion"]},
    }
    if allowed:
        control_plane.request("PUT", target, body)
        return
    with pytest.raises(ApiError) as refusal:
        control_plane.request("PUT", target, body)
    assert in_python is not None
    assert [(field, message.removeprefix("Invalid value: ")) for field, message in causes(refusal.value)] == [
        (error.path, error.message) for error in in_python.errors
    ]


@pytest.mark.parametrize(
    "file",
    sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "crds/examples").glob("*.yaml")]),
    ids=lambda f: f.name,
)
def test_examples_apply_and_read_alike(control_plane: ControlPlane, namespace: str, file: Path) -> None:
    found = load([file])
    assert not found.problems
    assert found.resources
    # Examples name namespaces of their own; a dry run needs them to exist.
    text = "\n---\n".join(
        json.dumps({**document(one.kind, one.resource.name, spec_of(one.resource))}) for one in found.resources
    )
    control_plane.kubectl("apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-", stdin=text)
    for one in found.resources:
        stored = control_plane.request("GET", path(one.kind, namespace, one.resource.name, query=""))
        assert _without_empty(stored["spec"]) == _without_empty(spec_of(one.resource))


def test_kubectl_takes_the_quickstart_as_it_is(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(ROOT / "examples/quickstart"))
    names = control_plane.kubectl("get", "tollway", "-n", namespace, "-o", "name").split()
    assert sorted(names) == [
        "apikey.tollway.dev/me",
        "modeldeployment.tollway.dev/smollm2",
        "plan.tollway.dev/starter",
    ]


STATUS: dict[str, dict[str, Any]] = {
    "ModelDeployment": {
        "modelId": "smollm2",
        "servingGeneration": 1,
        "pool": "cpu",
        "replicas": {"desired": 2, "ready": 1},
    },
    "Plan": {"models": 1, "keys": 2, "accounts": 1},
    "ApiKey": {
        "plan": "ml/starter",
        "account": "ml/me",
        "prefix": "sk-tw-abcd",
        "lastFour": "wxyz",
        "rotatedAt": "2026-11-25T00:00:00Z",
        "usage": {"periodEnd": "2026-12-01T00:00:00Z", "creditsUsed": "1.5", "creditsLeft": "48.5"},
    },
}
HEADERS = {
    "md": "NAME MODEL ENGINE READY REASON REPLICAS WANTED AGE",
    "plans": "NAME TIER CREDITS MODELS KEYS READY AGE",
    "ak": "NAME PLAN KEY READY REASON EXPIRES AGE",
}


def test_the_whole_status_can_be_applied_and_columns_show_it(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("apply", "-n", namespace, "-f", str(ROOT / "examples/quickstart"))
    for kind, name in (("ModelDeployment", "smollm2"), ("Plan", "starter"), ("ApiKey", "me")):
        conditions = [
            {
                "type": type_,
                "status": good.status,
                "observedGeneration": 1,
                "lastTransitionTime": "2026-11-25T00:00:00Z",
                "reason": good.value,
                "message": good.meaning,
            }
            for type_, reasons in CONDITIONS[kind].items()  # type: ignore[index] # one of the kinds
            for good in [next(iter(reasons))]
        ]
        status = {"observedGeneration": 1, "conditions": conditions, **STATUS[kind]}
        body = {**document(kind, name, None), "status": status}
        # Server-side apply refuses a field that the schema lacks, so this shows that it has them all.
        target = path(kind, namespace, name + "/status", query="fieldManager=tollway&force=true")
        answer = control_plane.request("PATCH", target, body, content_type="application/apply-patch+yaml")
        assert answer["status"] == status
    rows = {
        short: [line.split() for line in control_plane.kubectl("get", short, "-n", namespace).splitlines()]
        for short in HEADERS
    }
    assert {short: " ".join(lines[0]) for short, lines in rows.items()} == HEADERS
    assert rows["md"][1][:-1] == ["smollm2", "smollm2", "llamacpp", "True", "Ready", "1", "2"]
    assert rows["plans"][1][:-1] == ["starter", "Paid", "50", "1", "2", "True"]
    assert rows["ak"][1][:-1] == ["me", "ml/starter", "sk-tw-abcd", "True", "Active"]
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=Ready", "--timeout=5s", "md/smollm2", "ak/me")


def test_a_status_write_changes_no_spec(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.request("POST", path("Plan", namespace, query=""), document("Plan", "p", {"tier": "Free"}))
    body = {**document("Plan", "p", {"tier": "Paid"}), "status": {"keys": 1}}
    target = path("Plan", namespace, "p/status", query="fieldManager=tollway&force=true")
    answer = control_plane.request("PATCH", target, body, content_type="application/apply-patch+yaml")
    assert (answer["spec"]["tier"], answer["status"]["keys"]) == ("Free", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_explain_describes_every_field(control_plane: ControlPlane, kind: str) -> None:
    for part in ("spec", "status"):
        text = control_plane.kubectl("explain", f"{PLURALS[kind]}.{part}", "--api-version=tollway.dev/v1alpha1")
        assert "FIELDS" in text
        assert "<no description>" not in text


def test_crds_have_no_warnings(control_plane: ControlPlane) -> None:
    """Structural, and taken without a complaint."""
    for kind in crd.KINDS:
        stored = control_plane.request(
            "GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.tollway.dev"
        )
        conditions = {c["type"]: c["status"] for c in stored["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert conditions.get("NonStructuralSchema", "False") == "False"
