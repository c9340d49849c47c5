"""The status of the three resources, as the operator writes it: only `crd` reads these models, for the schema.

Whoever computes a status builds a plain dict of this shape; server-side apply refuses a field that is not here.
"""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr

from tollway_operator.resources.common import Model, Time
from tollway_operator.resources.rules import MapBy

Generation = Annotated[
    StrictInt, Field(ge=0)
]  # a bound at 2^63 - 1 is a float to the API server, which then refuses all
Number = Annotated[StrictInt, Field(ge=0, le=10**9)]
Word = Annotated[StrictStr, Field(max_length=316)]


class Condition(Model):
    type: Word = Field(description="What it is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Generation | None = Field(
        default=None, description="The version of the spec that was looked at."
    )
    last_transition_time: Time = Field(description="When status last changed.")
    reason: Annotated[StrictStr, Field(max_length=1024)] = Field(
        description="Why, in one word; see docs/conditions.md."
    )
    message: Annotated[StrictStr, Field(max_length=32768)] = Field(description="Why, in a sentence.")


class Status(Model):
    observed_generation: Generation | None = Field(
        default=None, description="The version of the spec that was looked at."
    )
    conditions: Annotated[tuple[Condition, ...], MapBy("type", "type")] = Field(
        default=(), description="What holds and what doesn't."
    )


class Replicas(Model):
    desired: Number = Field(description="How many there should be.")
    ready: Number = Field(description="How many answer.")


class ModelDeploymentStatus(Status):
    model_id: Word | None = Field(default=None, description="The id that clients write.")
    serving_generation: Generation | None = Field(default=None, description="The version of the spec that answers now.")
    pool: Word | None = Field(default=None, description="The group of nodes that it runs on.")
    replicas: Replicas | None = Field(default=None, description="Copies of the model.")


class PlanStatus(Status):
    models: Number | None = Field(default=None, description="Models that it gives.")
    keys: Number | None = Field(default=None, description="ApiKeys on it.")
    accounts: Number | None = Field(default=None, description="Accounts of these keys.")


class Usage(Model):
    """This key's account in the current month, at most 5 minutes old."""

    period_end: Time = Field(description="When the month ends.")
    credits_used: Word = Field(description="Credits used in the month.")
    credits_left: Word | None = Field(default=None, description="Credits left in the month; absent: no limit.")


class ApiKeyStatus(Status):
    plan: Word | None = Field(default=None, description="The Plan that it is on, namespace/name.")
    account: Word | None = Field(default=None, description="Who pays, namespace/account.")
    prefix: Word | None = Field(default=None, description="The first characters of the key.")
    last_four: Word | None = Field(default=None, description="Its last four characters.")
    rotated_at: Time | None = Field(default=None, description="When the current key was made.")
    usage: Usage | None = Field(default=None, description="What was used in this month.")
