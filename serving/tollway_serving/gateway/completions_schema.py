"""The request of POST /completions, OpenAI's older endpoint: its parameter table and its rules. For its route."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tollway_serving.gateway.admission import Prompt
from tollway_serving.gateway.chat_schema import CHAT, MAX_TOKENS, read_stream
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.parameters import Parameter, Table
from tollway_serving.gateway.text_input import TextInput, prompts

DEFAULT_TOKENS = 16  # OpenAI's
MAX_CHOICES = 128  # that are generated for one request, all prompts together


def _as_in_chat(*names: str) -> tuple[Parameter, ...]:
    return tuple(CHAT.parameters[name] for name in names)


COMPLETION = Table(
    "CompletionRequest",
    (
        *_as_in_chat("model"),
        Parameter("prompt", TextInput, "universal", "What is continued: text, texts, tokens.", required=True),
        *_as_in_chat("stream", "stream_options"),
        Parameter(
            "max_tokens",
            Annotated[int, Field(ge=0, le=MAX_TOKENS)],
            "universal",
            f"The most tokens that one choice may have; {DEFAULT_TOKENS} by default.",
        ),
        *_as_in_chat("temperature", "top_p"),
        Parameter(
            "n",
            Annotated[int, Field(ge=1, le=MAX_CHOICES)],
            "engine",
            "How many choices a prompt.",
            neutral=(1,),
            here=True,
        ),
        Parameter(
            "best_of",
            Annotated[int, Field(ge=0, le=20)],
            "engine",
            "How many choices are generated, of which the n likeliest are answered; all are charged. At least n.",
        ),
        Parameter("echo", bool, "engine", "The prompt before the text.", neutral=(False,)),
        Parameter("suffix", str, "engine", "What comes after the text that is filled in.", neutral=("",)),
        Parameter(
            "logprobs",
            Annotated[int, Field(ge=0, le=5)],
            "engine",
            "Log probabilities, with as many alternatives at each position.",
            needs="Logprobs",
        ),
        *_as_in_chat("stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
        *_as_in_chat("top_k", "min_p", "repetition_penalty", "user"),
    ),
)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A valid request, before a model is chosen."""

    values: dict[str, Any]
    unknown: tuple[str, ...]
    model: str | None
    stream: bool
    include_usage: bool
    generated: int  # choices, all prompts together
    max_tokens: int | None
    prompts: tuple[Prompt, ...]


def read_completion(body: Any, ignore: bool) -> CompletionRequest:
    """Checks everything that does not depend on the model."""
    values, unknown = COMPLETION.validate(body, ignore)
    stream, include_usage = read_stream(values)
    n = values.get("n", 1)
    best_of = values.get("best_of", n)
    if best_of < n:
        raise ApiError("invalid_value", "'best_of' must be at least 'n'.", param="best_of")
    if best_of == n:
        values.pop("best_of", None)  # it is what happens anyway
    elif stream:
        raise ApiError("invalid_value", "'best_of' above 'n' can't be streamed.", param="best_of")
    found = prompts(values["prompt"], "prompt")
    if len(found) * best_of > MAX_CHOICES:
        text = f"At most {MAX_CHOICES} choices can be generated for one request, all prompts together."
        raise ApiError("invalid_value", text, param="n" if len(found) == 1 else "prompt")
    return CompletionRequest(
        values=values,
        unknown=unknown,
        model=values.get("model"),
        stream=stream,
        include_usage=include_usage,
        generated=len(found) * best_of,
        max_tokens=values.get("max_tokens"),
        prompts=found,
    )
