"""`Plan`: what a customer may use. Read by the publisher (catalogue) and the checks (references, credits)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from tollway_operator.resources import quantities
from tollway_operator.resources.common import (
    Credits,
    Labels,
    Limits,
    Model,
    ModelId,
    ModelIds,
    ModelList,
    Name,
    Namespaces,
    PositiveDuration,
    Quantity,
    Resource,
    Text,
    credits_cel,
    quantity_cel,
)
from tollway_operator.resources.rules import MapBy, Rule, SetOf
from tollway_serving.contract.catalogue import Endpoint
from tollway_serving.contract.units import Meter, Period


class Quota(Model):
    name: Name = Field(description="Shown in answers and usage.")
    meter: Meter = Field(description="What is counted; Requests counts successful ones.")
    limit: Annotated[StrictInt, Field(ge=0, le=10**15)] = Field(description="The most in a period.")
    period: Period = Field(default="Month", description="When the count starts again, in UTC.")
    models: ModelList | None = Field(default=None, description="Which models count; absent: all.")


Quotas = Annotated[tuple[Quota, ...], Field(max_length=16), MapBy("name", "name")]


class Trial(Model):
    RULES = (
        Rule(
            "has(self.duration) || has(self.requests)",
            "write duration, requests or both; leave trial out for none",
            lambda self: self.duration is not None or self.requests is not None,
        ),
    )

    duration: PositiveDuration | None = Field(default=None, description="From the account's first key.")
    requests: Annotated[StrictInt, Field(ge=1, le=10**9)] | None = Field(
        default=None, description="Successful requests in the whole trial."
    )

    @property
    def duration_seconds(self) -> int | None:
        """Whole seconds, rounded up."""
        return None if self.duration is None else -(-quantities.milliseconds(self.duration) // 1000)


class PlanCredits(Model):
    RULES = (
        Rule(
            f"!has(self.monthly) || !has(self.lowWatermark) || !{credits_cel('self.monthly')} || "
            f"!{credits_cel('self.lowWatermark')} || "
            "quantity(string(self.lowWatermark)).compareTo(quantity(string(self.monthly))) <= 0",
            "lowWatermark must be at most monthly",
            lambda self: (
                self.monthly_micro is None
                or self.low_watermark_micro is None
                or self.low_watermark_micro <= self.monthly_micro
            ),
        ),
    )

    monthly: Credits | None = Field(
        default=None, description="Credits an account may use in a month (UTC); absent: no limit."
    )
    low_watermark: Credits | None = Field(
        default=None, description="Below it the account counts as low: CreditsLow in status and for fallbacks."
    )

    @property
    def monthly_micro(self) -> int | None:
        return None if self.monthly is None else quantities.micro_credits(self.monthly)

    @property
    def low_watermark_micro(self) -> int | None:
        return None if self.low_watermark is None else quantities.micro_credits(self.low_watermark)


class PlanLimits(Limits):
    RULES = (
        Rule(
            f"!has(self.fileSize) || !has(self.storage) || !{quantity_cel('self.fileSize')} || "
            f"!{quantity_cel('self.storage')} || "
            "quantity(string(self.fileSize)).compareTo(quantity(string(self.storage))) <= 0",
            "fileSize must be at most storage",
            lambda self: (
                self.file_size_bytes is None or self.storage_bytes is None or self.file_size_bytes <= self.storage_bytes
            ),
        ),
    )

    file_size: Quantity | None = Field(default=None, description="The largest file, such as 25Mi.")
    storage: Quantity | None = Field(default=None, description="All files of an account together, such as 1Gi.")

    @property
    def file_size_bytes(self) -> int | None:
        return None if self.file_size is None else quantities.whole_quantity(self.file_size)

    @property
    def storage_bytes(self) -> int | None:
        return None if self.storage is None else quantities.whole_quantity(self.storage)


class Selector(Model):
    match_labels: Labels = Field(description="Labels that a ModelDeployment must have, all of them.")


class PlanModels(Model):
    RULES = (
        Rule(
            "has(self.ids) || has(self.selector)",
            "write ids, selector or both; leave models out for all models",
            lambda self: self.ids is not None or self.selector is not None,
        ),
    )

    ids: ModelIds | None = Field(default=None, description="Model ids or aliases.")
    selector: Selector | None = Field(default=None, description="Models by the labels of their ModelDeployment.")


class DefaultModel(Model):
    endpoint: Endpoint = Field(description="The route.")
    model_id: ModelId = Field(description="The model where a request names none.")


class PlanSpec(Model):
    RULES = (
        Rule(
            "!has(self.endpoints) || !has(self.defaultModels) || "
            "self.defaultModels.all(default, default.endpoint in self.endpoints)",
            "defaultModels has an endpoint that is not among endpoints",
            lambda self: (
                self.endpoints is None or all(default.endpoint in self.endpoints for default in self.default_models)
            ),
        ),
    )

    display_name: Text | None = Field(default=None, description="By default the object's name.")
    tier: Literal["Paid", "Free"] = Field(
        default="Paid", description="Free: GET /usage says so (is_free). It limits and charges nothing by itself."
    )
    trial: Trial | None = Field(default=None, description="Ends the plan after a time or a number of requests.")
    credits: PlanCredits | None = Field(default=None, description="What an account may spend; absent: no limit.")
    limits: PlanLimits | None = Field(default=None, description="Rates and sizes; absent: no limit.")
    quotas: Quotas = Field(default=(), description="The most of one thing in a day, week or month.")
    models: PlanModels | None = Field(
        default=None, description="Models that it gives (union); absent: all that it may."
    )
    endpoints: Annotated[tuple[Endpoint, ...], Field(max_length=16), SetOf()] | None = Field(
        default=None, description="Routes that it gives; absent: all."
    )
    default_models: Annotated[tuple[DefaultModel, ...], Field(max_length=16), MapBy("endpoint", "endpoint")] = Field(
        default=(), description="The model where a request names none."
    )
    unsupported_parameters: Literal["Refuse", "Ignore"] = Field(
        default="Refuse",
        description="What happens to a request with a parameter that the model can't carry out. Ignored ones are named "
        "in x-ignored-parameters.",
    )
    allowed_namespaces: Namespaces = Field(
        default=(), description='Other namespaces whose ApiKeys may name this plan; ["*"]: all.'
    )


class Plan(Resource):
    """What a customer may use: models, routes, rates, quotas and credits. An empty one is unlimited."""

    KIND: ClassVar[Literal["Plan"]] = "Plan"

    spec: PlanSpec = Field(default=PlanSpec(), description="What is wanted; absent: no limit at all.")

    @property
    def display_name(self) -> str:
        return self.spec.display_name or self.metadata.name
