"""What the three resources share: the base model, metadata, and the field types with their rules.

Every field is written once, here or in the resource's own file: `crd` makes the CRD of it, `validate` and `load`
enforce it in Python. Names are the API's in snake_case, with the API's camelCase as alias.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StrictInt,
    StrictStr,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tollway_operator.resources import quantities
from tollway_operator.resources.rules import RULES_KEY, IntOrString, Rule, SetOf, Transition

GROUP = "tollway.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
DEFAULT_SECRET_KEY = "OPENAI_API_KEY"  # noqa: S105 - the name of a Secret's entry

_DNS_NAME = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_NAMESPACE = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_MODEL_ID = "^[A-Za-z0-9][-A-Za-z0-9._:/@+]*$"
_ACCOUNT = "^[A-Za-z0-9]([-A-Za-z0-9._@]*[A-Za-z0-9])?$"


def _matches(pattern: str, message: str) -> Rule:
    compiled = re.compile(pattern.removesuffix("$") + r"\Z")
    return Rule(f"self.matches('{pattern}')", message, lambda text: compiled.match(text) is not None)


def _without_nulls(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


WITHOUT_NULLS = BeforeValidator(_without_nulls)
"""For maps: to the API server an entry that is null is absent."""


class DateTime:
    """An RFC 3339 time with `format: date-time`, kept as written."""

    @staticmethod
    def check(text: str) -> str:
        if not quantities.is_time(text):
            raise PydanticCustomError("type", 'must be of type date-time, such as "2027-12-31T00:00:00Z"')
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "format": "date-time"}


ModelId = Annotated[
    StrictStr,
    Field(max_length=128),
    _matches(_MODEL_ID, "an id starts with a letter or digit and goes on with letters, digits and - . _ : / @ +"),
]
Name = Annotated[
    StrictStr,
    Field(max_length=63),
    _matches(_DNS_NAME, "a name has lower-case letters, digits, - and ., and starts and ends with a letter or digit"),
]
SecretKey = Annotated[
    StrictStr,
    Field(max_length=63),
    _matches("^[-._A-Za-z0-9]+$", "a Secret's key has letters, digits and - . _"),
]
AccountName = Annotated[
    StrictStr,
    Field(max_length=63),
    _matches(_ACCOUNT, "an account has letters, digits and - . _ @, and starts and ends with a letter or digit"),
]
NamespaceOrAll = Annotated[
    StrictStr,
    Field(max_length=63),
    Rule(
        f"self == '*' || self.matches('{_NAMESPACE}')",
        'write a namespace, or "*" for all',
        lambda text: text == "*" or re.fullmatch(_NAMESPACE, text) is not None,
    ),
]


def quantity_cel(field: str) -> str:
    """CEL that says whether `field` is a quantity. It looks at the characters first: isQuantity('1e99999999999') keeps
    an API server busy for minutes."""
    return f"(string({field}).matches('{quantities.QUANTITY}') && isQuantity(string({field})))"


def credits_cel(field: str) -> str:
    """CEL that says whether `field` is a number of credits."""
    return f"string({field}).matches('{quantities.CREDITS}')"


Text = Annotated[StrictStr, Field(max_length=256)]
LabelValue = Annotated[StrictStr, Field(max_length=63)]
Labels = Annotated[dict[StrictStr, LabelValue], Field(max_length=16), WITHOUT_NULLS]
HttpsUrl = Annotated[
    StrictStr,
    Field(max_length=1024),
    _matches(
        "^https?://[^ /?#]+[^ ?#]*$",
        "write an http:// or https:// address without query, such as https://example.com/v1",
    ),
]
Credits = Annotated[
    int | str,
    IntOrString(20),
    Rule(
        credits_cel("self"),
        'write a whole number or a quoted decimal with at most 6 decimals, such as "0.15"',
        lambda value: re.fullmatch(quantities.CREDITS.strip("^$"), str(value)) is not None,
    ),
]
Quantity = Annotated[
    int | str,
    IntOrString(32),
    Rule(
        f"{quantity_cel('self')} && quantity(string(self)).isGreaterThan(quantity('0'))",
        'write an amount above 0, such as 25Mi, 24Gi or "0.5"',
        lambda value: quantities.is_quantity(value) and quantities.quantity(value) > 0,
    ),
]


@lru_cache(1024)
def is_duration(text: str) -> bool:
    return bool(text) and re.fullmatch(quantities.DURATION.strip("^$"), text) is not None


def duration_cel(field: str) -> str:
    """CEL that says whether `field` is a duration; a rule that compares durations asks it first, because reading
    another text would add a second, unclear error."""
    return f"({field}.matches('{quantities.DURATION}') && {field}.matches('[0-9]'))"


Duration = Annotated[
    StrictStr,
    Field(max_length=20),
    Rule(duration_cel("self"), "write a duration such as 30s, 10m or 1h30m", is_duration),
]
PositiveDuration = Annotated[
    StrictStr,
    Field(max_length=20),
    Rule(
        f"self.matches('{quantities.DURATION}') && self.matches('[1-9]')",
        "write a duration above 0 such as 30s, 10m or 1h30m",
        lambda text: is_duration(text) and quantities.milliseconds(text) > 0,
    ),
]
Time = Annotated[StrictStr, Field(max_length=40), DateTime()]
Rate = Annotated[StrictInt, Field(ge=1, le=10**9)]
Count = Annotated[StrictInt, Field(ge=1, le=10**6)]
Tokens = Annotated[StrictInt, Field(ge=1, le=10**8)]
Namespaces = Annotated[tuple[NamespaceOrAll, ...], Field(max_length=64), SetOf()]
ModelIds = Annotated[tuple[ModelId, ...], Field(max_length=256), SetOf()]


class Model(BaseModel):
    """Base of every object in a resource. Unknown fields are errors; `RULES` are enforced after the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_alias=True, validate_by_name=False
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()
    TRANSITIONS: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_absent(cls, value: Any) -> Any:
        """As to the API server; a null in an unknown field stays, to be refused."""
        if isinstance(value, Mapping) and None in value.values():
            known = {field.alias for field in cls.model_fields.values()}
            return {key: item for key, item in value.items() if item is not None or key not in known}
        return value

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Empty lists and objects that nobody wrote are not in a dump: the schema has no default for them either."""
        dumped: dict[str, Any] = handler(self)
        written = {to_camel(name) for name in self.model_fields_set} | self.model_fields_set
        return {key: value for key, value in dumped.items() if key in written or value not in ((), [], {})}

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for rule in self.RULES:
            rule.enforce(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        result = handler(schema)
        own = handler.resolve_ref_schema(result)
        if cls.RULES or cls.TRANSITIONS:
            own[RULES_KEY] = [rule.as_dict() for rule in cls.RULES] + [rule.as_dict() for rule in cls.TRANSITIONS]
        return result


class Metadata(BaseModel):
    """The part of an object's metadata that Tollway reads. `created` is in seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    created: int = 0
    labels: Mapping[str, str] = {}


NAME_RULE = Rule(
    "size(self.metadata.name) <= 63",
    "a name has at most 63 characters",
    lambda resource: len(resource.metadata.name) <= 63,
)


class Resource(Model):
    """Base of the three kinds. `RULES` of a kind are its CRD's root rules."""

    RULES: ClassVar[tuple[Rule, ...]] = (NAME_RULE,)

    metadata: Metadata

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def full_name(self) -> str:
        """namespace/name"""
        return f"{self.metadata.namespace}/{self.metadata.name}"


class LocalSecret(Model):
    name: Name = Field(description="A Secret in the same namespace.")


class SecretRef(Model):
    name: Name = Field(description="A Secret in the same namespace.")
    key: SecretKey = Field(default=DEFAULT_SECRET_KEY, description="The entry of the Secret that holds the key.")


class ModelList(Model):
    ids: ModelIds = Field(description="Model ids.")


class Limits(Model):
    """Limits of a key, or of every key of a plan."""

    requests_per_minute: Rate | None = Field(
        default=None, description="Requests at once, refilled at this rate a minute."
    )
    tokens_per_minute: Rate | None = Field(
        default=None, description="Prompt and answer tokens at once, refilled at this rate a minute."
    )
    concurrent_requests: Count | None = Field(default=None, description="Requests in progress at the same time.")
