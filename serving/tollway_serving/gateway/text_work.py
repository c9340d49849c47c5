"""Text in, text out: what chat and the older completions have in common as `handle` asks for it. Used by their routes.

Our own engines are asked for a stream even where the client wants the answer whole; see `collect`.
"""

from collections.abc import Iterable
from typing import Any

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway.call import Call, Header
from tollway_serving.gateway.collect import collect
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.fallback import Opened
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.relay import Peeked, Stream, peek_stream, peek_whole, send_whole
from tollway_serving.gateway.shapes import Shape
from tollway_serving.gateway.upstream import Answer
from tollway_serving.gateway.upstream_errors import Failed


class TextWork:
    """Half of a `handle.ModelWork`: everything that does not depend on the request's own parameters."""

    shape: Shape
    links: tuple[tuple[str, str], ...] = ()
    collected = True  # a whole answer may be asked for as a stream

    def __init__(self, streamed: bool, include_usage: bool) -> None:
        self.streamed = streamed
        self._include_usage = include_usage

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

    def following(self, entry: ModelEntry) -> Iterable[dict[str, Any]]:
        return ()

    def add(self, peeked: Any, more: Any, meter: Meter) -> None:
        raise NotImplementedError  # nothing follows

    def blame(self, found: Failed | ApiError) -> Failed | ApiError:
        return found

    async def send(self, call: Call, opened: Opened, headers: list[Header]) -> None:
        if self.streamed:
            await Stream(call, opened, headers, self._include_usage, self.shape).run()
        else:
            await send_whole(call, opened, headers, self.shape)

    def _streams(self, entry: ModelEntry) -> bool:
        return self.streamed or (self.collected and entry.target.internal and entry.target.continuous_usage)
