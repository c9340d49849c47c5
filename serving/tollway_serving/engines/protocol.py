"""What an engine is to the application around it: `app` calls this, one file an engine implements it.

An engine answers in `Chunk`s, neutral pieces of a chat answer; `app` makes OpenAI's bodies and SSE frames of them, so
that every engine's answers look alike.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable


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
class CallDelta:
    """A piece of a function call: the first one of a call has its id and name, the others pieces of its arguments."""

    index: int  # of the call in its choice
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def body(self) -> dict[str, Any]:
        """OpenAI's `delta.tool_calls` item."""
        if self.id is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one choice. The last one of a choice has its finish_reason; `usage` never shrinks."""

    index: int
    text: str
    usage: Usage
    logprobs: list[dict[str, Any]] | None = None  # OpenAI's logprobs.content, for the tokens of this text
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    calls: tuple[CallDelta, ...] = ()
    ignored: tuple[str, ...] = ()  # paths of what was accepted without effect, in the first chunk at least


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
    gpus: int = 0  # of each pod; 0: none
    pods: int = 1
    adapters: bool = False  # some are loaded while it runs (the deployment's user_config)
    source_secret: str | None = None  # NAMESPACE_SECRET of source.secretRef: files that the loader reads


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in the order of the inputs: lists of floats, or base64 of little-endian float32."""

    vectors: list[list[float]] | list[str]
    prompt_tokens: int

    def body(self) -> dict[str, Any]:
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(self.vectors)]
        return {"data": data, "usage": {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}}


class Engine(Protocol):
    """Made in the replica's constructor; every method is called on the replica's event loop and must not block it."""

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Prompt tokens of a request, exactly as the answer's usage will have them."""

    async def check(self) -> None:
        """Raises if the engine is stuck or gone: Serve then replaces the replica."""


@runtime_checkable
class ChatEngine(Engine, Protocol):
    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        """Generates. Closing the generator stops the generation. EngineError for what can't be answered, before the
        first chunk wherever possible."""


@runtime_checkable
class CompletionEngine(Engine, Protocol):
    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        """The same for OpenAI's older completions; `logprobs` in chat's shape."""


@runtime_checkable
class EmbeddingEngine(Engine, Protocol):
    async def embed(self, request: Mapping[str, Any]) -> Embeddings:
        """Vectors of the request's `input`."""
