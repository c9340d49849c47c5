"""Whether a request needs a function call: asked of the model itself before it answers. Used by `llamacpp`.

A small model does not begin a call by itself, and its first word says little: on 36 requests, 17 of which needed a
function, SmolLM2-135M told them apart with an area under the curve of 0.68. Asked to name the function or none of
them, with three examples and against a request for nothing, 0.98 (35 of 36 right at this margin).
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from tollway_serving.engines import gbnf
from tollway_serving.engines.constrained import Decision

MARGIN = 2.2
"""How much likelier (natural logarithm) a function must be than none, beyond what it is for a request for nothing."""

_REMEMBERED = 256
_MAX_TOKENS = 64

Run = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any]]]


class Decider:
    """`run` generates a chat answer and yields llama.cpp's events."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._neutral: OrderedDict[tuple[str, str], float] = OrderedDict()  # the same functions come again and again

    async def needed(self, decision: Decision) -> bool:
        label, function = await self._likeliest(decision.asked, decision.labels)
        _, neither = await self._likeliest(decision.asked, (decision.neither,))
        return function - neither - await self._neutral_lead(decision, label) > MARGIN

    async def _neutral_lead(self, decision: Decision, label: str) -> float:
        key = (decision.neutral[0]["content"], label)
        lead = self._neutral.get(key)
        if lead is None:
            _, function = await self._likeliest(decision.neutral, (label,))
            _, neither = await self._likeliest(decision.neutral, (decision.neither,))
            lead = self._neutral[key] = function - neither
            while len(self._neutral) > _REMEMBERED:
                self._neutral.popitem(last=False)
        self._neutral.move_to_end(key)
        return lead

    async def _likeliest(self, messages: list[dict[str, str]], labels: tuple[str, ...]) -> tuple[str, float]:
        """The label that the model continues with, and its logarithmic probability."""
        body = {
            "messages": messages,
            "grammar": f"root ::= {gbnf.union([gbnf.literal(label) for label in labels])}\n",
            "temperature": 0.0,
            "max_tokens": _MAX_TOKENS,
            "logprobs": True,
            "top_logprobs": 1,
            "stream": True,
            "n": 1,
        }
        text, total = "", 0.0
        async with aclosing(self._run(body)) as events:
            async for event in events:
                for choice in event.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    total += sum(entry["logprob"] for entry in (choice.get("logprobs") or {}).get("content") or ())
        return text, total
