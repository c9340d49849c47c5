"""Text in, text out: what chat and the older completions have in common as `handle` asks for it. Used by their routes.

Our own engines are asked for a stream even where the client wants the answer whole; see `collect`. What a model can't
do but the gateway can is done here: `n` by several calls, one after the other, and stop sequences (`stops`).
"""

from collections.abc import Iterator
from typing import Any

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.collect import collect
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.fallback import Opened
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.parameters import Fitted
from tollway_serving.gateway.peek import Peeked, peek_stream, peek_whole
from tollway_serving.gateway.relay import Stream
from tollway_serving.gateway.shapes import Shape
from tollway_serving.gateway.stops import Stopper
from tollway_serving.gateway.upstream import Answer
from tollway_serving.gateway.upstream_errors import Failed
from tollway_serving.gateway.whole import count_whole, send_whole


class TextWork:
    """Half of a `handle.ModelWork`: everything that does not depend on the request's own parameters."""

    shape: Shape
    links: tuple[tuple[str, str], ...] = ()
    collected = True  # a whole answer may be asked for as a stream

    def __init__(self, streamed: bool, include_usage: bool) -> None:
        self.streamed = streamed
        self._include_usage = include_usage
        self.calls = 1  # that one answer takes
        self._stopper: Stopper | None = None
        self._body: dict[str, Any] = {}

    def in_its_stead(self, fitted: Fitted, choices: int) -> None:
        """Takes what the model does not do of a request for `choices` choices, all prompts together."""
        self._body = fitted.payload
        self.calls = fitted.here.get("n", 1)
        stop = fitted.here.get("stop", ())
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        self._stopper = Stopper(stops, self.shape, choices // self.calls) if stops else None

    def stream_options(self, entry: ModelEntry, body: dict[str, Any]) -> None:
        """Asks for a stream where one is wanted, and for all the usage that the model can tell."""
        if self._streams(entry):
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
            if entry.target.continuous_usage:
                body["stream_options"]["continuous_usage_stats"] = True

    async def fetch(self, fetcher: Fetcher) -> None:
        raise NotImplementedError  # there are no links

    def patience_ms(self, entry: ModelEntry) -> int:
        return entry.timeouts.first_byte_ms if self._streams(entry) else entry.timeouts.total_ms

    async def peek(self, entry: ModelEntry, answer: Answer) -> Any:
        if self.streamed or answer.content_type == "text/event-stream":
            return await peek_stream(entry, answer, self.shape)
        return await peek_whole(entry, answer, self.shape)

    async def complete(self, entry: ModelEntry, answer: Answer, peeked: Any, meter: Meter) -> Any:
        return await collect(entry, answer, peeked, meter, self.shape) if isinstance(peeked, Peeked) else peeked

    def following(self, entry: ModelEntry) -> Iterator[dict[str, Any]]:
        for number in range(1, self.calls):
            seed = self._body.get("seed")
            # The same seed would give the same choice again.
            yield self._body if seed is None else {**self._body, "seed": seed - number if seed > 0 else seed + number}

    async def add(self, entry: ModelEntry, answer: Answer, peeked: Any, more: Any, meter: Meter) -> None:
        count_whole(peeked, meter, self.shape)
        meter.next_call()
        more = await self.complete(entry, answer, more, meter)
        count_whole(more, meter, self.shape)
        peeked["choices"] += more["choices"]
        peeked["usage"] = None  # its details are the first call's only

    def blame(self, found: Failed | ApiError) -> Failed | ApiError:
        return found

    async def send(self, call: Call, opened: Opened, headers: list[Header]) -> None:
        if self.streamed:
            stream = Stream(call, opened, headers, self._include_usage, self.shape)
            if self.calls > 1 or self._stopper is not None:
                stream.in_its_stead(self.calls, self._stopper)
            await stream.run()
        else:
            choices = opened.peeked["choices"]
            if self.calls > 1:  # prompt by prompt, as one call has them
                each = len(choices) // self.calls
                opened.peeked["choices"] = choices = [c for at in range(each) for c in choices[at::each]]
                for index, choice in enumerate(choices):
                    choice["index"] = index
            if self._stopper is not None:
                count_whole(opened.peeked, opened.meter, self.shape)
                for choice in choices:
                    self._stopper.whole(choice)
            await send_whole(call, opened, headers, self.shape)

    def _streams(self, entry: ModelEntry) -> bool:
        return self.streamed or (self.collected and entry.target.internal and entry.target.continuous_usage)
