"""OpenAI's chat request as llama.cpp wants it, and llama.cpp's stream as our chunks. Called by the `llamacpp` engine.

Pure: no engine, no sockets, so that every rule here has a unit test.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tollway_serving.engines.calls import CallReader, Mode
from tollway_serving.engines.constrained import Plan
from tollway_serving.engines.protocol import Chunk, EngineError, Usage

MAX_CHOICES = 10

DEFAULTS: dict[str, Any] = {
    "temperature": 0.2,  # what the small models that this engine is for recommend
    "top_p": 0.9,
    "top_k": 0,  # llama.cpp's own defaults would narrow what temperature and top_p ask for
    "min_p": 0.0,
}
AGAINST_LOOPS = {"dry_multiplier": 0.8, "dry_allowed_length": 8, "dry_penalty_last_n": 256}
"""With a grammar, a small model can't leave a text once it repeats itself: what repeats 8 tokens gets less likely."""

_PASSED = (
    "temperature",
    "top_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
)
_READ_HERE = frozenset(
    {"model", "messages", "n", "max_tokens", "max_completion_tokens", "top_logprobs", "stream", "stream_options"}
    | {"tools", "tool_choice", "parallel_tool_calls", "response_format"}
)
# Hints that change no answer: whoever sends them here gets what they ask for.
_HINTS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})


def engine_request(request: Mapping[str, Any], output_tokens: int) -> tuple[dict[str, Any], int]:
    """llama.cpp's body without `n` and grammar, and the number of choices. The messages have text contents, but tool
    calls still as OpenAI writes them: `plan` rewrites those. EngineError names the parameter at fault."""
    for name, value in request.items():
        if value is None or name in _READ_HERE or name in _PASSED or name in _HINTS:
            continue
        raise EngineError(f"This model does not support {name}.", code="unsupported_parameter", param=name)
    choices = _first(request, "n", default=1)
    if not isinstance(choices, int) or not 1 <= choices <= MAX_CHOICES:
        raise EngineError(f"n must be a whole number from 1 to {MAX_CHOICES}.", param="n")
    maximum = _first(request, "max_completion_tokens", "max_tokens", default=output_tokens)
    if not isinstance(maximum, int) or maximum < 1:
        raise EngineError("max_tokens must be a whole number above 0.", param="max_tokens")
    body = {
        **DEFAULTS,
        **{name: request[name] for name in _PASSED if request.get(name) is not None},
        "messages": _messages(request.get("messages")),
        "max_tokens": min(maximum, output_tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,  # every event carries the exact count so far
        "return_progress": True,  # events while a prompt is read, so that it can be cancelled there too
    }
    if body.get("logprobs"):
        body["top_logprobs"] = max(1, int(request.get("top_logprobs") or 0))  # 0 would mean: no logprobs at all
    return body, choices


def constrain(body: dict[str, Any], how: Plan, mode: Mode) -> dict[str, Any]:
    """The body with the messages and the grammar of this mode."""
    grammar = how.text_grammar if mode == "text" else how.call_grammar
    # A call's text is not the answer's: neither stop sequences nor log probabilities mean anything there.
    left_out = ("stop", "logprobs", "top_logprobs") if mode == "calls" else ()
    kept = {name: value for name, value in body.items() if name not in left_out}
    kept["messages"] = how.messages
    return kept if grammar is None else {**kept, "grammar": grammar, **AGAINST_LOOPS}


def _first(request: Mapping[str, Any], *names: str, default: int) -> Any:
    return next((request[name] for name in names if request.get(name) is not None), default)


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise EngineError("messages must be a list of at least one message.", param="messages")
    return [_message(number, message) for number, message in enumerate(messages)]


def _message(number: int, message: object) -> dict[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise EngineError(f"{where} must be an object with a role.", param=where)
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text(f"{where}.content[{at}]", part) for at, part in enumerate(content))
    if content is not None and not isinstance(content, str):
        raise EngineError(f"{where}.content must be text or a list of parts.", param=f"{where}.content")
    kept = {name: message[name] for name in ("tool_calls", "tool_call_id") if message.get(name) is not None}
    return {"role": role, "content": content or "", **kept}


def _text(where: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return str(part[kind])
    code = {"image_url": "image_not_supported_by_model", "input_audio": "audio_not_supported_by_model"}.get(
        str(kind), "invalid_value"
    )
    raise EngineError(f"This model reads text only; {where} is {kind or 'no content part'}.", code=code, param=where)


def failure(error: Mapping[str, Any], param: str = "messages") -> EngineError:
    """llama.cpp's error as ours. `param`: where the prompt stands in the request."""
    if error.get("type") == "exceed_context_size_error":
        limit, used = int(error["n_ctx"]), int(error["n_prompt_tokens"])
        return EngineError(
            f"This model's maximum context length is {limit} tokens. However, your {param} resulted in {used} tokens. "
            f"Please reduce the length of the {param}.",
            code="context_length_exceeded",
            param=param,
        )
    status, message = int(error.get("code") or 500), str(error.get("message", ""))
    if status == 503:
        return EngineError("The model is busy.", status=503, type_="server_error", code="model_overloaded")
    if 400 <= status < 500:
        return EngineError(message)
    return EngineError("The model failed.", status=500, type_="server_error", code="internal_error")


class Decoder:
    """Follows the events of one request, over one or more calls of llama.cpp, and keeps the sums."""

    def __init__(self, top_logprobs: int = 0, mode: Mode = "text") -> None:
        self._top = top_logprobs
        self._mode = mode
        self._readers: dict[int, CallReader] = {}
        self._first = 0
        self._prompt = self._cached = 0
        self._completion: dict[int, int] = {}
        self._ended: tuple[int, str] | None = None  # a choice whose final count is still to come

    def next_call(self, first: int) -> None:
        """The next events are of choices `first` and following."""
        self._first = first

    def chunks(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        if timings := event.get("timings"):
            self._count_prompt(int(timings["cache_n"]) + int(timings["prompt_n"]), int(timings["cache_n"]))
        for choice in event.get("choices", ()):
            yield from self._choice(choice, timings)
        if (usage := event.get("usage")) and self._ended:
            # Comes right after the choice that it belongs to, but does not name it.
            index, reason = self._ended
            self._ended = None
            self._count_prompt(int(usage["prompt_tokens"]), self._cached)
            self._completion[index] = int(usage["completion_tokens"])
            ended = self._reader(index).finish("length" if reason == "length" else "stop")
            yield Chunk(index, "", self._usage(), finish_reason=ended)

    def _choice(self, choice: Mapping[str, Any], timings: Mapping[str, Any] | None) -> Iterator[Chunk]:
        index = self._first + int(choice["index"])
        if timings:
            self._completion[index] = max(self._completion.get(index, 0), int(timings["predicted_n"]))
        if reason := choice.get("finish_reason"):
            self._ended = (index, reason)
        text, calls = self._reader(index).feed(choice["delta"].get("content") or "")
        entries = (choice.get("logprobs") or {}).get("content")
        logprobs = [self._logprob(entry) for entry in entries] if entries else None
        if text or calls or (logprobs and self._reader(index).mode != "calls"):
            yield Chunk(index, text, self._usage(), None if calls else logprobs, calls=calls)

    def _reader(self, index: int) -> CallReader:
        return self._readers.setdefault(index, CallReader(self._mode))

    def _count_prompt(self, total: int, cached: int) -> None:
        if not self._first and total >= self._prompt:
            self._prompt, self._cached = total, cached

    def _usage(self) -> Usage:
        return Usage(self._prompt, sum(self._completion.values()), min(self._cached, self._prompt))

    def _logprob(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        top = [_without_id(other) for other in entry.get("top_logprobs", ())[: self._top]]
        return {**_without_id(entry), "top_logprobs": top}


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry.get("bytes")}
