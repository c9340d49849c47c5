"""POST /embeddings: texts to vectors, charged by prompt tokens.

A model that takes fewer texts a call than the client sends (its entry's `inputs_per_call`) is called several times;
one that knows no encoding_format, or ignores it, is converted for.
"""

import asyncio
import base64
import re
import struct
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from tollway_serving.contract.catalogue import Endpoint, ModelEntry
from tollway_serving.gateway.admission import Estimate, estimate_prompts
from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.embeddings_schema import EMBEDDING, EmbeddingRequest, Encoding, read_embedding
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.fallback import Opened
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.handle import handle
from tollway_serving.gateway.metering import Meter, whole
from tollway_serving.gateway.parameters import Fitted
from tollway_serving.gateway.peek import read_object
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.upstream import Answer
from tollway_serving.gateway.upstream_errors import Failed, unavailable
from tollway_serving.gateway.whole import settle_and_send

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_ENDPOINT: Endpoint = "Embeddings"
_AT_ONCE = 256  # vectors written between two looks at other requests: 10 ms where they are long


class EmbeddingWork:
    """A request for embeddings as `handle` asks for it, model by model."""

    endpoint: Endpoint = _ENDPOINT
    path = "/embeddings"
    answers = "embeddings"
    prompt = "input"
    streamed = False
    calls = 1  # `following` is for answers that come whole
    links: tuple[tuple[str, str], ...] = ()

    def __init__(self, request: EmbeddingRequest, ignore: bool) -> None:
        self.request = request
        self.ignore = ignore
        self.model = request.model
        self.unknown = request.unknown
        self._body: dict[str, Any] = {}  # of a call, without its input
        self._first, self._asked = 0, 0  # of the last call: its first text's place, and how many it has

    def fit(self, model: Model) -> Fitted:
        return EMBEDDING.fit(self.request.values, model, self.ignore)

    def estimate(self, entry: ModelEntry, first: bool) -> Estimate:
        return Estimate(estimate_prompts(entry, self.request.prompts), 0, 0, explicit=True)

    def payload(self, fitted: Fitted, entry: ModelEntry, granted: int) -> dict[str, Any]:
        self._body = {**fitted.payload, "model": entry.target.model}
        if "encoding_format" not in entry.parameters:
            self._body.pop("encoding_format", None)
        return next(self._calls(entry, 0))

    async def fetch(self, fetcher: Fetcher) -> None:
        raise NotImplementedError  # there are no links

    def patience_ms(self, entry: ModelEntry) -> int:
        return entry.timeouts.total_ms  # the answer comes whole

    async def peek(self, entry: ModelEntry, answer: Answer) -> dict[str, Any]:
        """An answer's vectors in the order of their texts, and its prompt tokens (None: not told)."""
        value = await read_object(entry, answer, self.prompt)
        data, usage = value.get("data"), value.get("usage")
        if not isinstance(data, list) or len(data) != self._asked:
            raise unavailable(entry, "not one embedding a text")
        vectors: list[Any] = [None] * len(data)
        for place, item in enumerate(data):
            index = item.get("index", place) if isinstance(item, dict) else None
            if type(index) is not int or not 0 <= index < len(data) or vectors[index] is not None:
                raise unavailable(entry, "an embedding without its place")
            try:
                vectors[index] = encode(item.get("embedding"), self.request.encoding)
            except (TypeError, ValueError, OverflowError, struct.error):
                raise unavailable(entry, "an embedding is no vector") from None
        return {"vectors": vectors, "tokens": whole(usage.get("prompt_tokens")) if isinstance(usage, dict) else None}

    async def complete(self, entry: ModelEntry, answer: Answer, peeked: Any, meter: Meter) -> Any:
        meter.prompt_tokens = peeked["tokens"]
        return peeked

    def following(self, entry: ModelEntry) -> Iterator[dict[str, Any]]:
        return self._calls(entry, entry.inputs_per_call)

    async def add(self, entry: ModelEntry, answer: Answer, peeked: Any, more: Any, meter: Meter) -> None:
        peeked["vectors"] += more["vectors"]
        known = meter.prompt_tokens is not None and more["tokens"] is not None
        meter.prompt_tokens = meter.prompt_tokens + more["tokens"] if known else None

    def blame(self, found: Failed | ApiError) -> Failed | ApiError:
        error = found.error if isinstance(found, Failed) else found
        if self._first:
            error.message = self._placed(error.message)
            error.param = self._placed(error.param) if error.param is not None else None
        return found

    def _placed(self, text: str) -> str:
        """What a model says of a text in its call, said of its place in the request."""
        return re.sub(r"input\[(\d{1,9})\]", lambda match: f"input[{int(match[1]) + self._first}]", text)

    async def send(self, call: Call, opened: Opened, headers: list[Header]) -> None:
        tokens = opened.meter.counts(1)["input_tokens"]
        rest = {"model": opened.entry.model_id, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        vectors = opened.peeked["vectors"]
        parts = []
        for first in range(0, len(vectors), _AT_ONCE):
            data = [
                {"object": "embedding", "index": first + index, "embedding": vector}
                for index, vector in enumerate(vectors[first : first + _AT_ONCE])
            ]
            parts.append(orjson.dumps(data)[1:-1])
            await asyncio.sleep(0)
        body = b'{"object":"list","data":[%b],%b' % (b",".join(parts), orjson.dumps(rest)[1:])
        await settle_and_send(call, opened, headers, body)

    def _calls(self, entry: ModelEntry, start: int) -> Iterator[dict[str, Any]]:
        """The bodies of the calls for the texts from `start` on."""
        texts, size = self.request.texts, entry.inputs_per_call
        for first in range(start, len(texts), size):
            part = texts[first : first + size]
            self._first, self._asked = first, len(part)
            # A lone text is sent as it came: not every engine takes a list.
            given = self.request.values["input"] if len(texts) == 1 else part
            yield {**self._body, "input": given}


def encode(vector: Any, encoding: Encoding) -> Any:
    """A vector as the client wants it. TypeError, ValueError, OverflowError or struct.error if it is none."""
    if isinstance(vector, str):
        if encoding == "base64":
            return vector
        packed = base64.b64decode(vector, validate=True)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    if not isinstance(vector, list) or not vector:
        raise ValueError("no vector")
    if encoding == "float":
        array("d", vector)  # numbers only
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


async def embed(gateway: "Gateway", call: Call) -> None:
    await handle(gateway, call, _ENDPOINT, lambda body, ignore: EmbeddingWork(read_embedding(body, ignore), ignore))


ROUTES = (Route("POST", "/embeddings", embed, ("requests", "input_tokens"), request=EMBEDDING),)
