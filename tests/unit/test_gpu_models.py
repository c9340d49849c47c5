"""Models on GPUs, their sources and adapters: what is refused at apply, and what Ray and KubeRay are told."""

from typing import Any

import pytest
from support.built import Objects, model, reason
from support.world import llama

from tollway_operator.builders.desired import Desired
from tollway_operator.builders.memory import gpu_mib, parameters, weight_bits
from tollway_operator.builders.pod_states import gpu_memory
from tollway_operator.builders.pools import PodDefaults
from tollway_operator.builders.ray_cluster import ray_cluster
from tollway_operator.keys import describe
from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.platform import PlatformStatus
from tollway_operator.ports import AppStatus, RayStatus, SecretView
from tollway_operator.resources import ModelDeployment
from tollway_operator.settings import Settings
from tollway_serving.contract.args import Arg

KUBERAY = KubeRaySettings(namespace="tollway", image="serving:1")
SETTINGS = Settings(base_url="http://localhost/v1", pods=KUBERAY.pod_defaults)
L4 = {"gpus": 1, "accelerator": "NVIDIA-L4"}


def vllm(uri: str = "hf://Qwen/Qwen3-8B", *, args: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"engine": {"name": "vllm", "args": args or {}}, "source": {"uri": uri}, "resources": L4, **spec}


def adapter(base: str = "base", uri: str = "hf://org/lora", **source: Any) -> dict[str, Any]:
    return {"engine": {"name": "vllm"}, "source": {"uri": uri, "adapterOf": base, **source}}


def secret(name: str, namespace: str = "ml", **values: str) -> SecretView:
    return SecretView(
        namespace, name, f"uid-{name}", {}, None, 0, {key: describe(text) for key, text in values.items()}
    )


@pytest.fixture
def objects() -> Objects:
    return Objects()


def config(desired: Desired, name: str) -> Any:
    return desired.rollout.configs[f"model-ml.{name}"]


# What is refused


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (vllm(args={"max-model-length": 1}), "args.max-model-length: not an argument of this engine; it has async-sch"),
        (vllm(args={"tensor-parallel-size": 2}), "args.tensor-parallel-size: resources.gpus decides this; remove it"),
        (vllm(args={"lora-modules": "a=b"}), "source.adapterOf of the adapters decides this"),
        (vllm(args={"gpu-memory-utilization": "1.5"}), "write a number from 0 to 1"),
        (vllm(args={"gpu-memory-utilization": "much"}), 'such as "0.9"'),
        (vllm(args={"enforce-eager": "yes"}), 'write "true" or "false"'),
        (vllm(args={"hf-overrides": "{"}), "write JSON"),
        (vllm(args={"quantization": "awk"}), "write one of awq"),
        (
            vllm(args={"max-model-len": 100}, limits={"contextTokens": 200}),
            "200, but spec.engine.args.max-model-len is 100",
        ),
        (vllm(capabilities=["Tools"]), "Tools needs spec.engine.args.tool-call-parser"),
        (vllm(resources={"cpu": 1}), "spec.resources.gpus: engine vllm needs at least 1"),
        (llama(resources={"pods": 2}), "spec.resources.pods: engine llamacpp can't be split"),
        (vllm("hf://Qwen3-8B"), "spec.source.uri: write hf://ORG/NAME"),
        (vllm("pvc://weights/qwen"), "only a ModelDeployment in tollway can name one"),
        ({"engine": {"name": "custom"}, "resources": L4}, "args.import-path: missing; MODULE:NAME in the image"),
    ],
)
def test_what_is_refused_at_apply(objects: Objects, spec: dict[str, Any], said: str) -> None:
    objects.put("ModelDeployment", "m", spec)
    view = model(objects.built(SETTINGS), "m")
    assert reason(view) == "InvalidArgs"
    assert view.refused is not None
    assert said in view.refused.message


def test_a_sources_secret_must_be_there_and_of_use(objects: Objects) -> None:
    spec = vllm()
    spec["source"]["secretRef"] = {"name": "hf"}
    objects.put("ModelDeployment", "m", spec)
    missing = model(objects.built(SETTINGS), "m").refused
    assert missing is not None
    assert (missing.reason, missing.message) == ("SecretNotFound", "spec.source.secretRef: there is no Secret ml/hf")
    useless = model(objects.built(SETTINGS, secrets=(secret("hf", token="x"),)), "m").refused
    assert useless is not None
    assert "no entry that a loader reads (AUTHORIZATION, AWS" in useless.message
    assert model(objects.built(SETTINGS, secrets=(secret("hf", HF_TOKEN="x"),)), "m").refused is None


# The fit


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", vllm(info={"parameters": "32B"}))
    view = model(objects.built(SETTINGS, ray=RayStatus({})), "m")
    assert reason(view) == "DoesNotFit"
    assert view.refused is not None
    assert "64.0 GB of weights (32B parameters of 16 bits)" in view.refused.message
    assert "1 x NVIDIA-L4 have 24.2 GB, of which vLLM takes 90% (21.7 GB)" in view.refused.message
    assert view.entry is None


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        (vllm(), True),  # 16 GB of 24
        (vllm(resources={"gpus": 1, "accelerator": "Tesla-T4"}), False),
        (vllm(resources={"gpus": 2, "accelerator": "Tesla-T4"}), True),
        (vllm(resources={"gpus": 1, "pods": 2, "accelerator": "Tesla-T4"}), True),
        (vllm("hf://Qwen/Qwen3-8B-AWQ", resources={"gpus": 1, "accelerator": "Tesla-T4"}), True),
        (vllm(args={"quantization": "fp8"}, resources={"gpus": 1, "accelerator": "Tesla-T4"}), True),
        (vllm(args={"dtype": "float32"}), False),
        (vllm(args={"max-model-len": 1_000_000}), False),
        (vllm(args={"cpu-offload-gb": 20}, resources={"gpus": 1, "accelerator": "Tesla-T4"}), True),
        (vllm(args={"gpu-memory-utilization": "0.5"}), False),
        (
            vllm(
                "s3://a/b", info={"parameters": "70 B"}, resources={"gpus": 2, "accelerator": "NVIDIA-H100-80GB-HBM3"}
            ),
            True,
        ),
        (
            vllm(
                "s3://a/b", info={"parameters": "8x22B"}, resources={"gpus": 4, "accelerator": "NVIDIA-A100-SXM4-40GB"}
            ),
            False,
        ),
    ],
)
def test_the_fit_counts_gpus_weights_and_context(objects: Objects, spec: dict[str, Any], fits: bool) -> None:
    objects.put("ModelDeployment", "m", spec)
    assert reason(model(objects.built(SETTINGS), "m")) == (None if fits else "DoesNotFit")


def test_what_cannot_be_checked_is_said_and_nodes_know_more(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", vllm("s3://bucket/mine", resources={"gpus": 1, "accelerator": "Grace-X"}))
    view = model(objects.built(SETTINGS), "m")
    assert view.refused is None
    assert "not checked; that needs resources.accelerator" in view.note
    objects.put("ModelDeployment", "m", vllm(resources={"gpus": 1, "accelerator": "Grace-X"}))
    nodes = [{"metadata": {"labels": {"product": "Grace-X", "memory": "8192"}}}, {"metadata": {}}]
    platform = PlatformStatus(gpu_mib=gpu_memory(nodes, "product", "memory"))
    assert reason(model(objects.built(SETTINGS, platform=platform), "m")) == "DoesNotFit"


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("NVIDIA-L4", 23_034),
        ("NVIDIA-L40S", 46_068),
        ("NVIDIA-A10G", 23_028),
        ("NVIDIA-A100-SXM4-80GB", 81_920),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 10_240),
        ("NVIDIA-H100-80GB-HBM3", 81_920),
        ("NVIDIA-H200", 143_771),
        ("NVIDIA-GH200-480GB", 97_871),
        ("NVIDIA-GeForce-RTX-4090", 24_564),
        ("AMD-Instinct", None),
    ],
)
def test_memory_of_a_gpu_by_its_name(name: str, mib: int | None) -> None:
    assert gpu_mib(name, {}) == mib


@pytest.mark.parametrize(
    ("uri", "info", "count", "bits"),
    [
        ("hf://Qwen/Qwen3-30B-A3B", None, 30e9, 16),
        ("hf://a/Mixtral-8x7B-v0.1", None, 56e9, 16),
        ("hf://a/SmolLM2-135M", None, 135e6, 16),
        ("hf://a/Llama-3.1-8B-Instruct-FP8", None, 8e9, 8),
        ("hf://a/model-GPTQ-Int4", "1.5B", 1.5e9, 4),
        ("hf://a/model@7b", None, None, 16),
    ],
)
def test_size_of_a_model_by_its_name(uri: str, info: str | None, count: float | None, bits: float) -> None:
    spec = vllm(uri, info={"parameters": info} if info else {})
    found = ModelDeployment.model_validate({"metadata": {"name": "m"}, "spec": spec})
    assert (parameters(found), weight_bits(found)) == (count, bits)


# What Ray is told


def test_tensor_and_pipeline_parallel_replicas_get_a_placement_group(objects: Objects) -> None:
    spec = vllm("s3://a/b", info={"parameters": "70B"}, args={"max-num-seqs": 64, "max-model-len": 4096})
    spec["resources"] = {"gpus": 2, "pods": 2, "cpu": 8, "accelerator": "NVIDIA-A100-SXM4-80GB"}
    objects.put("ModelDeployment", "m", spec)
    desired = objects.built(SETTINGS, ray=RayStatus({}))
    view = model(desired, "m")
    assert view.pool is not None
    assert view.entry is not None
    assert view.entry.context_tokens == 4096
    (deployment,) = config(desired, "m")["deployments"]
    selector = view.pool.label_selector
    assert deployment["placement_group_bundles"] == [{"CPU": 7.0, "GPU": 1.0}, *[{"CPU": 1.0, "GPU": 1.0}] * 3]
    assert deployment["placement_group_strategy"] == "PACK"
    assert deployment["placement_group_bundle_label_selector"] == [selector] * 4
    assert deployment["ray_actor_options"] == {"num_cpus": 1.0, "label_selector": selector}
    assert deployment["max_ongoing_requests"] == 64
    assert (config(desired, "m")["args"]["gpus"], config(desired, "m")["args"]["pods"]) == (2, 2)
    assert desired.demands is not None
    assert [(demand.minimum, demand.maximum) for demand in desired.demands] == [(2, 4)]


def test_one_pod_is_packed_strictly_and_an_existing_ray_needs_no_labels(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", vllm())
    elsewhere = Settings(base_url="http://localhost/v1", accelerators=frozenset({"NVIDIA-L4"}))
    (deployment,) = config(objects.built(elsewhere, ray=RayStatus({})), "m")["deployments"]
    assert deployment["placement_group_bundles"] == [{"CPU": 2.0, "GPU": 1.0}]
    assert deployment["placement_group_strategy"] == "STRICT_PACK"
    assert deployment["ray_actor_options"] == {"num_cpus": 1.0}
    assert "placement_group_bundle_label_selector" not in deployment


def test_args_give_capabilities(objects: Objects) -> None:
    objects.put("ModelDeployment", "m", vllm(args={"tool-call-parser": "hermes"}))
    entry = model(objects.built(SETTINGS), "m").entry
    assert entry is not None
    assert entry.capabilities == ("StructuredOutput", "Logprobs", "Tools")
    assert "tools" in entry.parameters
    assert "reasoning_effort" not in entry.parameters


# Adapters


def test_adapters_run_in_their_base(objects: Objects) -> None:
    objects.put("ModelDeployment", "base", vllm(allowedNamespaces=["sales"]))
    objects.put("ModelDeployment", "sales/tuned", {**adapter(secretRef={"name": "s3"}), "pricing": {"perRequest": 1}})
    view = secret("s3", "sales", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", other="c")
    running = RayStatus({"model-ml.base": AppStatus("model-ml.base", "RUNNING", "", {}, 1, 1, {"RUNNING": 1})})
    desired = objects.built(SETTINGS, secrets=(view,), ray=running)
    assert set(desired.rollout.configs) == {"gateway", "model-ml.base"}
    assert config(desired, "base")["args"]["adapters"] is True
    told = {"tuned": {"source": "hf://org/lora", "secret": "sales_s3"}}
    assert config(desired, "base")["deployments"][0]["user_config"] == {"adapters": told}
    assert desired.catalogue is not None
    tuned = next(entry for entry in desired.catalogue.models if entry.model_id == "tuned")
    assert tuned.target.url.endswith("/_models/ml.base/v1")
    assert (tuned.target.model, tuned.state, tuned.prices) == ("tuned", "Ready", {"requests": 1_000_000})
    pool = model(desired, "base").pool
    assert pool is not None
    assert pool.needs.secrets == (("sales", "s3", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),)
    asleep = objects.built(
        SETTINGS, secrets=(view,), ray=RayStatus({"model-ml.base": AppStatus("", "DEPLOYING", "", {}, 0, 1, {})})
    )
    assert asleep.catalogue is not None
    assert {entry.state for entry in asleep.catalogue.models} == {"Starting"}


@pytest.mark.parametrize(
    ("base", "spec", "said"),
    [
        (vllm(), adapter("nobody"), "nobody: there is no such model"),
        (llama(), {**adapter(), "engine": {"name": "llamacpp"}}, "engine llamacpp takes no adapters"),
        (llama(), adapter(), "ml/base runs in engine llamacpp"),
        (vllm(args={"max-model": 1}), adapter(), "ml/base is not accepted: spec.engine.args.max-model"),
        (adapter("other"), adapter(), "ml/base is an adapter itself; name its base"),
        (vllm(args={"max-model-len": 512}), {**adapter(), "limits": {"contextTokens": 1024}}, "its base has 512"),
    ],
)
def test_adapters_that_are_refused(objects: Objects, base: dict[str, Any], spec: dict[str, Any], said: str) -> None:
    objects.put("ModelDeployment", "base", base)
    objects.put("ModelDeployment", "tuned", spec)
    view = model(objects.built(SETTINGS), "tuned")
    assert reason(view) == "InvalidArgs"
    assert view.refused is not None
    assert said in view.refused.message


def test_an_adapter_needs_leave_of_its_base(objects: Objects) -> None:
    objects.put("ModelDeployment", "base", vllm())
    objects.put("ModelDeployment", "sales/tuned", adapter())
    refused = model(objects.built(SETTINGS), "tuned").refused
    assert refused is not None
    assert "ml/base doesn't list sales in allowedNamespaces" in refused.message


# What pods get


def test_a_pool_mounts_its_own_secrets_and_claims_alone(objects: Objects) -> None:
    for name in ("one", "two"):
        spec = vllm()
        spec["source"]["secretRef"] = {"name": name}
        objects.put("ModelDeployment", f"tollway/{name}", spec)
    objects.put("ModelDeployment", "tollway/stored", vllm("pvc://weights/qwen"))
    objects.put("ModelDeployment", "open", vllm())
    secrets = tuple(secret(name, "tollway", HF_TOKEN=name, unrelated="x") for name in ("one", "two"))
    desired = objects.built(SETTINGS, secrets=secrets)
    assert desired.source_keys == {
        "tollway_one_HF_TOKEN": ("tollway", "one", "HF_TOKEN"),
        "tollway_two_HF_TOKEN": ("tollway", "two", "HF_TOKEN"),
    }
    assert desired.demands is not None
    assert len(desired.demands) == 4, "equal pods, but with other mounts"
    groups = {
        group["groupName"]: group["template"]["spec"]
        for group in ray_cluster(KUBERAY, desired.demands, None, busy=(), pods={})["spec"]["workerGroupSpecs"]
    }
    mounted = {}
    for name in ("one", "stored", "open"):
        pool = model(desired, name).pool
        assert pool is not None
        volumes = {volume["name"]: volume for volume in groups[pool.name]["volumes"]}
        mounted[name] = [volumes.get("sources"), volumes.get("claim-0")]
    item = {"key": "tollway_one_HF_TOKEN", "path": "tollway_one_HF_TOKEN"}
    own = {"secretName": "tollway-sources", "optional": True, "defaultMode": 0o440, "items": [item]}
    claim = {"name": "claim-0", "persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
    assert mounted["one"] == [{"name": "sources", "secret": own}, None]
    assert mounted["stored"] == [None, claim]
    assert mounted["open"] == [None, None]


def test_a_pool_without_mounts_keeps_its_name() -> None:
    """A new name would be a new pool: every model of an installation would start anew after an upgrade."""
    from tollway_operator.builders.pools import pool_of

    plain = ModelDeployment.model_validate({"metadata": {"name": "m"}, "spec": llama()})
    assert pool_of(plain, PodDefaults("image:1", {}, 1000, 2**30)).name == "cpu-d7acaba1"  # as released first


@pytest.mark.parametrize(
    ("arg", "value", "meaning"),
    [
        (Arg("integer", ""), 3, 3),
        (Arg("number", "", 0, 1), "0.5", 0.5),
        (Arg("flag", ""), "false", False),
        (Arg("json", ""), '{"a": [1]}', {"a": [1]}),
        (Arg("string", ""), 3, "3"),
    ],
)
def test_what_an_arg_means_to_the_engine(arg: Arg, value: int | str, meaning: object) -> None:
    assert arg.wrong(value) is None
    assert arg.meaning(value) == meaning
