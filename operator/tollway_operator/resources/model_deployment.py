"""`ModelDeployment`: what runs, where, at what price, and what takes over when it fails.

Read by the builders, the publisher and the checks through its typed properties.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt, StrictStr

from tollway_operator.resources import quantities
from tollway_operator.resources.common import (
    NAME_RULE,
    Credits,
    Duration,
    HttpsUrl,
    Labels,
    Model,
    ModelId,
    Namespaces,
    PositiveDuration,
    Quantity,
    Resource,
    SecretRef,
    Text,
    Tokens,
    duration_cel,
)
from tollway_operator.resources.engine import Engine, Source
from tollway_operator.resources.rules import MapBy, Rule, SetOf, Transition
from tollway_serving.contract.catalogue import OWN_HEADERS, Capability, Endpoint, FallbackReason, Protocol
from tollway_serving.contract.units import Unit


class ModelLimits(Model):
    RULES = (
        Rule(
            "!has(self.contextTokens) || !has(self.outputTokens) || self.outputTokens <= self.contextTokens",
            "outputTokens must be at most contextTokens",
            lambda self: (
                self.context_tokens is None or self.output_tokens is None or self.output_tokens <= self.context_tokens
            ),
        ),
    )

    context_tokens: Tokens | None = Field(
        default=None, description="Prompt and answer together; the engine's by default."
    )
    output_tokens: Tokens | None = Field(
        default=None, description="The most that one answer may have; the engine's by default."
    )
    queued_requests: Annotated[StrictInt, Field(ge=1, le=100_000)] = Field(
        default=100, description="Calls to this model that one gateway replica lets run or wait at once."
    )


class Info(Model):
    """What GET /v1/models says of the model."""

    owned_by: Text | None = Field(default=None, description="Who made it.")
    licence: Text | None = Field(default=None, description="Its licence, such as apache-2.0.")
    parameters: Text | None = Field(default=None, description="Its size, such as 8.2B.")


class Toleration(Model):
    key: Text | None = Field(default=None, description="The taint's key; absent with operator Exists: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists, or Equal to value.")
    value: Text | None = Field(default=None, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent: every effect."
    )


class Resources(Model):
    """What one pod of the model needs."""

    cpu: Quantity | None = Field(default=None, description="CPUs of a pod.")
    memory: Quantity | None = Field(default=None, description="Memory of a pod, such as 24Gi.")
    gpus: Annotated[StrictInt, Field(ge=0, le=64)] = Field(
        default=0, description="GPUs of a pod: the model is split over them (tensor parallel)."
    )
    accelerator: Text | None = Field(default=None, description="The kind of GPU, such as NVIDIA-L4.")
    node_selector: Labels = Field(default={}, description="Labels that a node must have.")
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = Field(
        default=(), description="Taints of nodes that don't matter."
    )
    pods: Annotated[StrictInt, Field(ge=1, le=64)] = Field(
        default=1, description="Pods of one replica: the model is split over them (pipeline parallel)."
    )

    @property
    def cpu_milli(self) -> int | None:
        """Thousandths of a CPU."""
        return None if self.cpu is None else quantities.whole_quantity(self.cpu, 1000)

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else quantities.whole_quantity(self.memory)


Replicas = Annotated[StrictInt, Field(ge=0, le=1000)]


class Autoscaling(Model):
    RULES = (
        Rule(
            "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "maxReplicas must be at least minReplicas",
            lambda self: self.max_replicas is None or self.min_replicas <= self.max_replicas,
        ),
    )

    min_replicas: Replicas = Field(default=1, description="0: the model sleeps while nobody calls it.")
    max_replicas: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        default=None, description="By default minReplicas, at least 1."
    )
    target_ongoing_requests: Annotated[StrictInt, Field(ge=1, le=100_000)] = Field(
        default=8, description="Requests that each replica should be working on."
    )
    scale_up_delay: Duration = Field(default="30s", description="How long load must stay above the target.")
    scale_down_delay: Duration = Field(default="10m", description="How long load must stay below the target.")
    cold_start: Literal["Wait", "Refuse"] = Field(
        default="Wait", description="What a call to a sleeping model gets: it waits, or a 503 with Retry-After."
    )

    @property
    def max(self) -> int:
        """The most replicas, with the default worked out."""
        return max(1, self.min_replicas) if self.max_replicas is None else self.max_replicas

    @property
    def scale_up_delay_ms(self) -> int:
        return quantities.milliseconds(self.scale_up_delay)

    @property
    def scale_down_delay_ms(self) -> int:
        return quantities.milliseconds(self.scale_down_delay)


class Fallback(Model):
    model_id: ModelId = Field(description="The model that answers instead.")
    when: Annotated[tuple[FallbackReason, ...], SetOf()] = Field(
        default=("Unavailable", "Overloaded", "Timeout"), description="What must have happened."
    )


class Timeouts(Model):
    RULES = (
        Rule(
            f"!{duration_cel('self.total')} || duration(self.total) <= duration('1h')",
            "total is at most 1h",
            lambda self: self.total_ms <= 3_600_000,
        ),
    )

    connect: PositiveDuration = Field(default="2s", description="Until the backend takes the connection.")
    first_byte: PositiveDuration = Field(default="1m", description="Until the first byte of its answer.")
    idle: PositiveDuration = Field(default="1m", description="Between two pieces of its answer.")
    total: PositiveDuration = Field(default="10m", description="For the whole answer; at most 1h.")

    @property
    def connect_ms(self) -> int:
        return quantities.milliseconds(self.connect)

    @property
    def first_byte_ms(self) -> int:
        return quantities.milliseconds(self.first_byte)

    @property
    def idle_ms(self) -> int:
        return quantities.milliseconds(self.idle)

    @property
    def total_ms(self) -> int:
        return quantities.milliseconds(self.total)


class Pricing(Model):
    """Credits for what is used. A price that is absent is 0."""

    per_million_input_tokens: Credits | None = Field(default=None, description="Credits for a million prompt tokens.")
    per_million_output_tokens: Credits | None = Field(
        default=None, description="Credits for a million tokens of the answer."
    )
    per_million_characters: Credits | None = Field(
        default=None, description="Credits for a million characters of speech."
    )
    per_audio_minute: Credits | None = Field(default=None, description="Credits for a minute of audio listened to.")
    per_image: Credits | None = Field(default=None, description="Credits for an image.")
    per_megapixel: Credits | None = Field(default=None, description="Credits for a million pixels of images.")
    per_video_second: Credits | None = Field(default=None, description="Credits for a second of video.")
    per_music_second: Credits | None = Field(default=None, description="Credits for a second of music.")
    per_page: Credits | None = Field(default=None, description="Credits for a page of a document.")
    per_file: Credits | None = Field(default=None, description="Credits for a file.")
    per_request: Credits | None = Field(default=None, description="Credits for a request, beside the rest.")

    UNITS: ClassVar[dict[str, Unit]] = {
        "per_million_input_tokens": "input_tokens",
        "per_million_output_tokens": "output_tokens",
        "per_million_characters": "characters",
        "per_audio_minute": "audio_ms",
        "per_image": "images",
        "per_megapixel": "pixels",
        "per_video_second": "video_ms",
        "per_music_second": "music_ms",
        "per_page": "pages",
        "per_file": "files",
        "per_request": "requests",
    }

    @property
    def micro(self) -> dict[Unit, int]:
        """Micro-credits per contract.units.PRICE_UNITS, without the free ones."""
        written: dict[Unit, int | str | None] = {unit: getattr(self, field) for field, unit in self.UNITS.items()}
        prices = {unit: quantities.micro_credits(value) for unit, value in written.items() if value is not None}
        return {unit: price for unit, price in prices.items() if price}


class Header(Model):
    name: Annotated[
        StrictStr,
        Field(max_length=63),
        Rule(
            "self.matches('^[A-Za-z0-9-]+$')",
            "a header's name has letters, digits and -",
            lambda text: re.fullmatch("[A-Za-z0-9-]+", text) is not None,
        ),
        Rule(
            f"!(self.lowerAscii() in {list(OWN_HEADERS)})",
            "the gateway sends this header itself",
            lambda text: text.lower() not in OWN_HEADERS,
        ),
    ] = Field(description="The header's name.")
    value: Annotated[
        StrictStr,
        Field(max_length=1024),
        Rule(
            "self.matches('^[ -~]*$')",
            "a header's value has printable ASCII characters only",
            lambda text: re.fullmatch("[ -~]*", text) is not None,
        ),
    ] = Field(description="Its value. Not for secrets: use secretRef.")


class Remote(Model):
    """A model that somebody else serves."""

    url: HttpsUrl = Field(description="Up to and without the route, such as https://example.com/v1.")
    protocol: Protocol = Field(default="OpenAI", description="What the provider speaks.")
    model: Annotated[StrictStr, Field(max_length=256)] | None = Field(
        default=None, description="The id that the provider knows; by default modelId."
    )
    secret_ref: SecretRef | None = Field(default=None, description="The provider's key.")
    headers: Annotated[tuple[Header, ...], Field(max_length=16), MapBy("name", "name")] = Field(
        default=(), description="Headers to send along."
    )


def _has_pods_though_an_adapter(spec: "ModelDeploymentSpec") -> bool:
    own = spec.resources or spec.autoscaling or spec.engine.image is not None or spec.engine.args
    return spec.source is not None and spec.source.adapter_of is not None and bool(own)


def _engine_is_remote(spec: "ModelDeploymentSpec") -> bool:
    return spec.engine.name == "remote"


class ModelDeploymentSpec(Model):
    RULES = (
        Rule(
            "(self.engine.name == 'remote') == has(self.remote)",
            "engine.name: remote and the field remote go together; write both or neither",
            lambda self: _engine_is_remote(self) == (self.remote is not None),
        ),
        Rule(
            "self.engine.name != 'remote' || !(has(self.source) || has(self.resources) || has(self.autoscaling))",
            "a remote model takes no source, resources or autoscaling",
            lambda self: not (_engine_is_remote(self) and (self.source or self.resources or self.autoscaling)),
        ),
        Rule(
            "!has(self.source) || !has(self.source.adapterOf) || !(has(self.resources) || has(self.autoscaling) || "
            "has(self.engine.image) || (has(self.engine.args) && size(self.engine.args) > 0))",
            "an adapter runs in its base: it takes no resources, autoscaling, engine.image or engine.args",
            lambda self: not _has_pods_though_an_adapter(self),
        ),
    )
    TRANSITIONS = (
        Transition(
            "has(self.modelId) == has(oldSelf.modelId) && (!has(self.modelId) || self.modelId == oldSelf.modelId)",
            "modelId can't be changed; delete the object and make a new one",
            lambda old, new: old.model_id == new.model_id,
        ),
    )

    model_id: ModelId | None = Field(
        default=None, description="The id that clients write as model; by default the object's name. Immutable."
    )
    aliases: Annotated[tuple[ModelId, ...], Field(max_length=32), SetOf()] = Field(
        default=(), description="More ids that mean this model."
    )
    engine: Engine = Field(description="The program that runs the model.")
    source: Source | None = Field(default=None, description="Where the weights come from.")
    endpoints: Annotated[tuple[Endpoint, ...], SetOf()] | None = Field(
        default=None, description="The routes that it serves; the engine's by default."
    )
    capabilities: Annotated[tuple[Capability, ...], SetOf()] | None = Field(
        default=None, description="What it can do there; the engine's by default."
    )
    limits: ModelLimits = Field(default=ModelLimits(), description="Sizes of requests, and how many may wait.")
    info: Info = Field(default=Info(), description="What GET /v1/models says of the model.")
    resources: Resources | None = Field(default=None, description="What one pod of the model needs.")
    autoscaling: Autoscaling | None = Field(default=None, description="How many replicas; by default one.")
    rollout: Literal["Surge", "Replace"] = Field(
        default="Surge",
        description="Surge: the new version starts beside the old one. Replace: the old one ends first.",
    )
    fallbacks: Annotated[tuple[Fallback, ...], Field(max_length=8), MapBy("modelId", "model_id")] = Field(
        default=(), description="Models that answer instead, in this order; their own fallbacks don't count."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long the gateway waits for the model.")
    pricing: Pricing | None = Field(default=None, description="What its use costs; absent: it is free.")
    allowed_namespaces: Namespaces = Field(
        default=(), description='Other namespaces whose Plans and models may name this one; ["*"]: all.'
    )
    remote: Remote | None = Field(default=None, description="Only with engine.name remote: who serves the model.")

    @property
    def scaling(self) -> Autoscaling:
        """`autoscaling`, or its defaults."""
        return self.autoscaling or Autoscaling()

    @property
    def pod(self) -> Resources:
        """`resources`, or its defaults."""
        return self.resources or Resources()

    @property
    def prices(self) -> dict[Unit, int]:
        """Micro-credits per contract.units.PRICE_UNITS, without the free ones."""
        return self.pricing.micro if self.pricing else {}


class ModelDeployment(Resource):
    """A model that clients can call: what runs it, at what price, and what takes over when it fails."""

    KIND: ClassVar[Literal["ModelDeployment"]] = "ModelDeployment"
    RULES = (
        NAME_RULE,
        Rule(
            "!has(self.spec.fallbacks) || self.spec.fallbacks.all(f, f.modelId != "
            "(has(self.spec.modelId) ? self.spec.modelId : self.metadata.name))",
            "a model can't be its own fallback",
            lambda self: all(fallback.model_id != self.model_id for fallback in self.spec.fallbacks),
        ),
        Rule(
            "!has(self.spec.source) || !has(self.spec.source.adapterOf) || self.spec.source.adapterOf != "
            "(has(self.spec.modelId) ? self.spec.modelId : self.metadata.name)",
            "a model can't be its own adapter",
            lambda self: self.spec.source is None or self.spec.source.adapter_of != self.model_id,
        ),
    )

    spec: ModelDeploymentSpec = Field(description="What is wanted.")

    @property
    def model_id(self) -> str:
        """The id that clients write: spec.modelId or the object's name."""
        return self.spec.model_id or self.metadata.name
