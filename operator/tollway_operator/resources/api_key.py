"""`ApiKey`: who may call, on which plan, and who pays. Read by the publisher and by what makes and rotates keys."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tollway_operator.resources import quantities
from tollway_operator.resources.common import (
    DEFAULT_SECRET_KEY,
    AccountName,
    Credits,
    Duration,
    Limits,
    Model,
    ModelList,
    Name,
    PositiveDuration,
    Resource,
    SecretRef,
    Time,
    duration_cel,
)
from tollway_operator.resources.plan import Quotas
from tollway_operator.resources.rules import Rule, SetOf
from tollway_serving.contract.catalogue import Endpoint


class PlanRef(Model):
    name: Name = Field(description="The Plan's name.")
    namespace: Name | None = Field(default=None, description="Its namespace; by default the ApiKey's own.")


class Rotation(Model):
    RULES = (
        Rule(
            f"!has(self.every) || !{duration_cel('self.every')} || !{duration_cel('self.overlap')} || "
            "(duration(self.every) >= duration('1h') && duration(self.overlap) < duration(self.every))",
            "every is at least 1h, and overlap (24h if absent) is shorter than every",
            lambda self: self.every_ms is None or (self.every_ms >= 3_600_000 and self.overlap_ms < self.every_ms),
        ),
    )

    every: PositiveDuration | None = Field(
        default=None, description="A fresh key each time this has passed; absent: never."
    )
    overlap: Duration = Field(default="24h", description="How long the old key still works.")

    @property
    def every_ms(self) -> int | None:
        return None if self.every is None else quantities.milliseconds(self.every)

    @property
    def overlap_ms(self) -> int:
        return quantities.milliseconds(self.overlap)


class KeyCredits(Model):
    monthly: Credits | None = Field(default=None, description="Credits this key may use in a month (UTC).")

    @property
    def monthly_micro(self) -> int | None:
        return None if self.monthly is None else quantities.micro_credits(self.monthly)


class ApiKeySpec(Model):
    RULES = (
        Rule(
            "!(has(self.secretName) && has(self.secretRef))",
            "write secretName (Tollway makes the key) or secretRef (the key is yours), not both",
            lambda self: not (self.secret_name and self.secret_ref),
        ),
        Rule(
            "!has(self.secretRef) || !has(self.rotation) || !has(self.rotation.every)",
            "a key from secretRef rotates when you change its Secret",
            lambda self: not (self.secret_ref and self.rotation and self.rotation.every),
        ),
    )

    plan_ref: PlanRef = Field(description="The Plan that the key is on.")
    account: AccountName | None = Field(
        default=None, description="Who pays; keys of a namespace can share it. By default the object's name."
    )
    state: Literal["Active", "Suspended"] = Field(default="Active", description="Suspended: every call is refused.")
    expires_at: Time | None = Field(
        default=None, description='When it ends, such as "2027-12-31T00:00:00Z"; absent: never.'
    )
    rotation: Rotation | None = Field(default=None, description="When a fresh key replaces this one.")
    secret_name: Name | None = Field(
        default=None, description="The Secret that Tollway writes the key to; by default the object's name."
    )
    secret_ref: SecretRef | None = Field(default=None, description="Instead: a Secret of yours that holds the key.")
    credits: KeyCredits | None = Field(default=None, description="What this key may spend of its account's credits.")
    limits: Limits | None = Field(default=None, description="This key's rates, beside its plan's.")
    quotas: Quotas = Field(default=(), description="This key's quotas, beside its plan's.")
    models: ModelList | None = Field(
        default=None, description="Of its plan's models, those that this key may use; absent: all."
    )
    endpoints: Annotated[tuple[Endpoint, ...], SetOf()] | None = Field(
        default=None, description="Of its plan's routes, those that this key may use; absent: all."
    )

    @property
    def expires(self) -> int | None:
        """Seconds since the epoch."""
        return None if self.expires_at is None else quantities.epoch_seconds(self.expires_at)


class ApiKey(Resource):
    """A key to the models of a Plan. Tollway writes it to a Secret, unless secretRef names one that you made."""

    KIND: ClassVar[Literal["ApiKey"]] = "ApiKey"

    spec: ApiKeySpec = Field(description="What is wanted.")

    @property
    def account(self) -> str:
        """namespace/account"""
        return f"{self.metadata.namespace}/{self.spec.account or self.metadata.name}"

    @property
    def plan(self) -> str:
        """namespace/name"""
        return f"{self.spec.plan_ref.namespace or self.metadata.namespace}/{self.spec.plan_ref.name}"

    @property
    def secret_name(self) -> str:
        """The Secret that holds the key: ours by default, the user's own with secretRef."""
        if self.spec.secret_ref:
            return self.spec.secret_ref.name
        return self.spec.secret_name or self.metadata.name

    @property
    def secret_key(self) -> str:
        """The entry of that Secret that holds the key."""
        return self.spec.secret_ref.key if self.spec.secret_ref else DEFAULT_SECRET_KEY
