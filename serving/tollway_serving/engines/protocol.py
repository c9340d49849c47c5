"""What an engine is to the application around it: `app` calls this, one file an engine implements it.

An engine answers in `Chunk`s, neutral pieces of a chat answer; `app` makes OpenAI's bodies and SSE frames of them, so
that every engine's answers look alike.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class EngineError(Exception):
    """Answered to the caller as OpenAI's error body. The message is for the client: no paths, no internal names."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type_: str = "invalid_request_error",
        code: str = "invalid_value",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class ModelMissingError(Exception):
    """The weights are not on this machine; the message says what to install. Fails the application's deployment."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens so far, all choices together; the prompt is counted once."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of prompt_tokens

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one choice. The last one of a choice has its finish_reason; `usage` never shrinks."""

    index: int
    text: str
    usage: Usage
    logprobs: list[dict[str, Any]] | None = None  # OpenAI's logprobs.content, for the tokens of this text
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """The application's arguments, as the operator writes them into the Serve config."""

    name: str  # namespace.name of the ModelDeployment
    model_id: str
    source: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    context_tokens: int = 2048  # of one request: prompt and answer
    output_tokens: int = 1024  # the answer's limit where the request names none
    slots: int = 4  # requests worked on at once
    queued_requests: int = 100  # requests that may wait for a slot; one more is answered 503


class ChatEngine(Protocol):
    """Made in the replica's constructor; every method is called on the replica's event loop and must not block it."""

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        """Generates. Closing the generator stops the generation. EngineError for what can't be answered, before the
        first chunk wherever possible."""

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Prompt tokens of a chat request."""

    async def check(self) -> None:
        """Raises if the engine is stuck or gone: Serve then replaces the replica."""
