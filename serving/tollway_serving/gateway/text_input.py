"""`prompt` of completions and `input` of embeddings: a text, texts, tokens or lists of tokens. For their schemas."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from tollway_serving.gateway.admission import Prompt
from tollway_serving.gateway.shapes import utf8_size

MAX_TEXTS = 2048
MAX_TOKENS = 2**20  # of all token lists together: more are checked for too long
_Text = Annotated[str, Field(min_length=1)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]


def _bounded(lists: Any) -> Any:
    few = type(lists) is list and len(lists) <= MAX_TEXTS
    if few and sum(len(one) for one in lists if type(one) is list) > MAX_TOKENS:
        raise PydanticCustomError("too_long", "there can be at most {most} tokens in all", {"most": MAX_TOKENS})
    return lists


def _form(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else None
    return "tokens" if type(first) is int else "token lists" if isinstance(first, list) else "texts"


TextInput = Annotated[
    Annotated[_Text, Tag("text")]
    | Annotated[Annotated[list[_Text], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)], Tag("texts")]
    | Annotated[_Tokens, Tag("tokens")]
    | Annotated[
        Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True), BeforeValidator(_bounded)],
        Tag("token lists"),
    ],
    Discriminator(_form),
]


def texts(given: Any) -> list[str | list[int]]:
    """A valid input as a list."""
    return given if isinstance(given, list) and type(given[0]) is not int else [given]


def prompts(given: Any, param: str) -> tuple[Prompt, ...]:
    """What is known of each text."""
    found = texts(given)
    if len(found) == 1:
        return (_prompt(found[0], param),)
    return tuple(_prompt(text, f"{param}[{index}]") for index, text in enumerate(found))


def _prompt(text: str | list[int], param: str) -> Prompt:
    if isinstance(text, list):
        return Prompt(tokens=len(text), param=param)
    return Prompt(utf8_size(text), param=param)
