"""CRDs and docs/conditions.md: fresh, whole, and refused here where an API server would refuse them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import yaml
from pydantic import Field

from tollway_operator import crd
from tollway_operator.resources import conditions
from tollway_operator.resources.common import Model
from tollway_operator.resources.conditions import CONDITIONS
from tollway_operator.resources.validate import KINDS

ROOT = Path(__file__).resolve().parents[2]


def test_generated_files_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "hack/generate"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stale_files_are_found(tmp_path: Path) -> None:
    """The check can fail: a copy of the checkout with one file changed, one missing and one too many."""
    (tmp_path / "hack").mkdir()
    (tmp_path / "crds").mkdir()
    for name in ("generate", "chart_schema.py", "objects_doc.py", "parameters_doc.py"):
        shutil.copy(ROOT / "hack" / name, tmp_path / "hack")
    shutil.copytree(ROOT / "charts/tollway", tmp_path / "charts/tollway")
    script = tmp_path / "hack/generate"

    def run(*args: str) -> tuple[int, list[str]]:
        command = [sys.executable, str(script), *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout.splitlines()

    plans = "crds/tollway.dev_plans.yaml"
    assert run("--check")[0] == 1
    assert run()[0] == 0
    assert run("--check") == (0, [])
    (tmp_path / plans).write_text((tmp_path / plans).read_text() + "# edited\n")
    (tmp_path / "crds/tollway.dev_old.yaml").write_text("")
    assert run("--check") == (1, [f"stale: {plans}", "stale: crds/tollway.dev_old.yaml"])
    assert run()[0] == 0
    assert run("--check") == (0, [])
    assert not (tmp_path / "crds/tollway.dev_old.yaml").exists()


def schema(kind: str) -> dict[str, Any]:
    found = yaml.safe_load(crd.files()[f"tollway.dev_{kind}s.yaml"])
    version = found["spec"]["versions"][0]
    result: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return result


def rules(node: Any) -> list[str]:
    """Every CEL rule below a node."""
    if isinstance(node, list):
        return [rule for item in node for rule in rules(item)]
    if not isinstance(node, dict):
        return []
    own = [rule["rule"] for rule in node.get("x-kubernetes-validations", [])]
    return own + [rule for item in node.values() for rule in rules(item)]


@pytest.mark.parametrize(
    ("kind", "way", "rule"),
    [
        ("modeldeployment", "", "size(self.metadata.name) <= 63"),
        ("plan", "", "size(self.metadata.name) <= 63"),
        ("apikey", "", "size(self.metadata.name) <= 63"),
        (
            "modeldeployment",
            "",
            "!has(self.spec.fallbacks) || self.spec.fallbacks.all(f, f.modelId != "
            "(has(self.spec.modelId) ? self.spec.modelId : self.metadata.name))",
        ),
        (
            "modeldeployment",
            "spec",
            "has(self.modelId) == has(oldSelf.modelId) && (!has(self.modelId) || self.modelId == oldSelf.modelId)",
        ),
        ("modeldeployment", "spec", "(self.engine.name == 'remote') == has(self.remote)"),
        (
            "modeldeployment",
            "spec",
            "self.engine.name != 'remote' || !(has(self.source) || has(self.resources) || has(self.autoscaling))",
        ),
        ("modeldeployment", "spec.source.uri", "self.matches('^(package|hf|s3|pvc|https)://[^ ]+$')"),
        ("modeldeployment", "spec.autoscaling", "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas"),
        ("plan", "spec.credits.monthly", "string(self).matches('^[0-9]{1,9}([.][0-9]{1,6})?$')"),
        ("apikey", "spec", "!(has(self.secretName) && has(self.secretRef))"),
        ("apikey", "spec", "!has(self.secretRef) || !has(self.rotation) || !has(self.rotation.every)"),
    ],
)
def test_rules_of_the_design_are_there_word_for_word(kind: str, way: str, rule: str) -> None:
    node = schema(kind)
    for part in filter(None, way.split(".")):
        node = node["properties"][part]
    assert rule in [own["rule"] for own in node["x-kubernetes-validations"]]


def test_every_rule_has_a_message() -> None:
    def check(node: Any) -> int:
        if isinstance(node, list):
            return sum(map(check, node))
        if not isinstance(node, dict):
            return 0
        own = node.get("x-kubernetes-validations", [])
        assert all(rule["message"] and "\n" not in rule["message"] for rule in own)
        return len(own) + sum(map(check, node.values()))

    assert [check(crd.definition(kind)) > 5 for kind in crd.KINDS] == [True, True, True]


def test_no_expensive_look_at_a_quantity() -> None:
    """isQuantity and quantity() are only asked after the characters were looked at."""
    for kind in crd.KINDS:
        for rule in rules(crd.definition(kind)):
            before = re.split(r"isQuantity|quantity\(", rule)[0]
            assert before == rule or ".matches(" in before


def test_names_are_the_apis() -> None:
    names = {kind.name: crd.definition(kind)["spec"]["names"] for kind in crd.KINDS}
    assert set(names) == set(KINDS)
    assert names["ModelDeployment"]["shortNames"] == ["md"]
    assert names["ApiKey"]["shortNames"] == ["ak"]
    assert "shortNames" not in names["Plan"]


class Inner(Model):
    word: str = Field(description="A word.")


def test_what_a_structural_schema_cannot_say_is_refused() -> None:
    class Union(Model):
        either: int | str

    class Pattern(Model):
        text: Annotated[str, Field(pattern="a+")]

    class Anything(Model):
        what: Any

    for model, words in ((Union, "no anyOf"), (Pattern, "no pattern"), (Anything, "needs a type")):
        with pytest.raises(crd.SchemaError, match=words):
            crd.structural(model)


class Endless(Model):
    next: "Endless | None" = None


def test_recursion_is_refused() -> None:
    with pytest.raises(crd.SchemaError, match="contains itself"):
        crd.structural(Endless)


def test_defaults_and_nulls() -> None:
    class Example(Model):
        NOT_A_FIELD: ClassVar[int] = 1
        absent: int | None = None
        words: tuple[str, ...] = ()
        nothing: Inner | None = None
        some: tuple[str, ...] = ("a",)

    assert crd.structural(Example) == {
        "type": "object",
        "properties": {
            "absent": {"type": "integer", "format": "int64"},
            "words": {"type": "array", "items": {"type": "string"}},
            "nothing": {
                "type": "object",
                "required": ["word"],
                "properties": {"word": {"type": "string", "description": "A word."}},
            },
            "some": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
        },
    }


# design/API.md section 3, in its order; the last three of Progressing came later.
REASONS = {
    "ModelDeployment": {
        "Accepted": "Accepted DuplicateModelId UnknownEngine InvalidArgs DoesNotFit SecretNotFound UnsupportedField",
        "Scheduled": "Scheduled NotNeeded NoSuchAccelerator WaitingForNode QuotaExceeded",
        "Ready": "Ready Asleep NotAccepted Starting ImagePullFailed SourceFailed EngineCrashed Unreachable",
        "Degraded": "AsExpected FewerReplicas RolledBack FallbackNotUsable AliasTaken",
        "Progressing": "UpToDate Deploying Scaling Draining RollingBack NoRoom PlatformUpgrade OnHold Failed",
    },
    "Plan": {
        "ResolvedRefs": "Resolved ModelNotFound NotPermitted",
        "Ready": "Published LedgerUnreachable UnsupportedField",
    },
    "ApiKey": {
        "Accepted": "Accepted PlanNotFound NotPermitted SecretNotFound SecretNotOurs WeakKey DuplicateKey "
        "UnsupportedField",
        "Ready": "Active NotAccepted Suspended Expired LedgerUnreachable",
        "NearLimit": "WithinLimits CreditsLow QuotaLow TrialEnding UsedUp",
    },
}


def test_reasons_are_the_apis() -> None:
    found = {
        kind: {type_: " ".join(reason.value for reason in reasons) for type_, reasons in types.items()}
        for kind, types in CONDITIONS.items()
    }
    assert found == REASONS


def test_every_bad_reason_says_what_to_do() -> None:
    for types in CONDITIONS.values():
        for type_, reasons in types.items():
            good = "False" if type_ in ("Degraded", "Progressing", "NearLimit") else "True"
            for reason in reasons:
                assert reason.meaning.endswith(".")
                assert reason.remedy or reason.status == good or type_ == "Progressing"
            assert next(iter(reasons)).status == good


def test_the_message_of_a_taken_id() -> None:
    assert conditions.duplicate_model_id("ml/qwen3-8b") == "belongs to ml/qwen3-8b (older); set another modelId"
