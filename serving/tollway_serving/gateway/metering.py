"""What a model has generated so far, and how much of it the ledger is sure of. Used by `relay` for each answer.

`Meter` counts by the model's own cumulative usage; text beyond the last usage is bounded by its bytes, and then the
charge is marked estimated. `Coverage` keeps the ledger's knowledge ahead of what leaves, so that a gateway that is
killed can't have given away tokens that nobody pays for.
"""

import asyncio
from typing import Any

from tollway_serving.contract.units import Unit
from tollway_serving.gateway.admission import Estimate
from tollway_serving.gateway.errors import ledger_unavailable
from tollway_serving.ledger.ops import Cover
from tollway_serving.ledger.port import Ledger

_FIRST_STEP = 64
_LARGEST_STEP = 1024
_TRIES = 4
_COUNT_LIMIT = 10**9


def whole(value: Any) -> int | None:
    """A count as it should be: a whole number from 0 to a milliard."""
    return value if type(value) is int and 0 <= value <= _COUNT_LIMIT else None


class Meter:
    __slots__ = ("_bound", "_tenths", "_unseen_tenths", "output_tokens", "prompt_tokens")

    def __init__(self, bound: Estimate, tenth_bytes_per_token: int) -> None:
        self._bound = bound
        self._tenths = tenth_bytes_per_token
        self._unseen_tenths = 0  # bytes x 10 since the last usage
        self.output_tokens = 0  # by the last usage
        self.prompt_tokens: int | None = None

    def usage(self, usage: Any) -> bool:
        """Takes a usage object; False if it has no counts."""
        if type(usage) is not dict:
            return False
        output = whole(usage.get("completion_tokens"))
        prompt = whole(usage.get("prompt_tokens"))
        if prompt is not None:
            self.prompt_tokens = prompt
        if output is None:
            return False
        if output > self.output_tokens:
            self.output_tokens = output
        self._unseen_tenths = 0
        return True

    def text(self, size: int) -> None:
        """`size` bytes of generated text that no usage speaks of yet."""
        self._unseen_tenths += size * 10

    @property
    def tokens(self) -> int:
        """Generated so far, never too few."""
        return self.output_tokens + -(-self._unseen_tenths // self._tenths)

    @property
    def estimated(self) -> bool:
        return self._unseen_tenths > 0 or self.prompt_tokens is None

    def counts(self, requests: int) -> dict[Unit, int]:
        """For the settlement; `requests` is 1 for an answer that counts as a request."""
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self._bound.input_tokens
        return {"requests": requests, "input_tokens": prompt, "output_tokens": self.tokens}


class Coverage:
    """Asks for the next step when half of the last one is left, so that the relay does not wait."""

    __slots__ = ("_asked", "_charge_id", "_durable", "_ledger", "_most", "_pending", "_step")

    def __init__(self, ledger: Ledger, charge_id: str, most: int) -> None:
        self._ledger = ledger
        self._charge_id = charge_id
        self._most = most
        self._step = _FIRST_STEP
        self._asked = 0
        self._durable = 0
        self._pending: asyncio.Future[None] | None = None
        self._ask(0, None)

    def covers(self, meter: Meter) -> bool:
        """Whether what the meter shows may leave; also asks for more in time."""
        tokens = meter.tokens
        if self._pending is None and self._asked < self._most and tokens + self._step // 2 > self._asked:
            self._ask(tokens, meter.prompt_tokens)
        return tokens <= self._durable

    async def wait(self, meter: Meter) -> None:
        """Until it may leave; ApiError ledger_unavailable if the ledger stays away."""
        for _ in range(_TRIES):
            while self._pending is not None and self._durable < meter.tokens:
                await asyncio.wait([self._pending])
            if self._durable >= meter.tokens:
                return
            self._ask(meter.tokens, meter.prompt_tokens)
        raise ledger_unavailable()

    def _ask(self, tokens: int, prompt_tokens: int | None) -> None:
        wanted = max(min(self._asked + self._step, self._most), tokens)
        self._step = min(self._step * 2, _LARGEST_STEP)
        self._asked = wanted
        future = self._ledger.submit(Cover(self._charge_id, wanted, prompt_tokens))
        self._pending = future

        def done(result: "asyncio.Future[None]") -> None:
            self._pending = None
            if not result.cancelled() and result.exception() is None:
                self._durable = max(self._durable, wanted)
            else:
                self._asked = self._durable

        future.add_done_callback(done)
