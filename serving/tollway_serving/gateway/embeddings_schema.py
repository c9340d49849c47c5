"""The request of POST /embeddings: its parameter table. For its route."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from tollway_serving.gateway.admission import Prompt
from tollway_serving.gateway.chat_schema import CHAT
from tollway_serving.gateway.parameters import Parameter, Table
from tollway_serving.gateway.text_input import TextInput, prompts, texts

Encoding = Literal["float", "base64"]

EMBEDDING = Table(
    "EmbeddingRequest",
    (
        CHAT.parameters["model"],
        Parameter("input", TextInput, "universal", "What becomes vectors: text, texts, tokens.", required=True),
        Parameter(
            "encoding_format", Encoding, "universal", "Numbers, or the base64 of float32 numbers; float by default."
        ),
        Parameter(
            "dimensions", Annotated[int, Field(ge=1, le=65_536)], "engine", "The vectors' length, if it can be chosen."
        ),
        CHAT.parameters["user"],
    ),
)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A valid request, before a model is chosen."""

    values: dict[str, Any]
    unknown: tuple[str, ...]
    model: str | None
    encoding: Encoding
    texts: list[str | list[int]]
    prompts: tuple[Prompt, ...]


def read_embedding(body: Any, ignore: bool) -> EmbeddingRequest:
    values, unknown = EMBEDDING.validate(body, ignore)
    return EmbeddingRequest(
        values=values,
        unknown=unknown,
        model=values.get("model"),
        encoding=values.get("encoding_format", "float"),
        texts=texts(values["input"]),
        prompts=prompts(values["input"], "input"),
    )
