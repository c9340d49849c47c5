"""Stop sequences for models that know none: looked for in what is generated, across chunks. For `text_work`, `relay`.

A text that may be the beginning of a stop sequence is held back until the next one shows what it is. Nothing from the
sequence on is sent, and the choice ends with the reason "stop", as if the model had ended it.
"""

from typing import Any

from tollway_serving.gateway.shapes import Shape


class Stopper:
    """Of the choices of one call to a model, `choices` of them."""

    def __init__(self, stops: tuple[str, ...], shape: Shape, choices: int) -> None:
        self._stops = stops
        self._shape = shape
        self._choices = choices
        self._held: dict[int, str] = {}
        self._ended: set[int] = set()

    def again(self) -> "Stopper":
        """For the next call."""
        return Stopper(self._stops, self._shape, self._choices)

    @property
    def ended(self) -> bool:
        """Whether every choice has met a stop sequence: nothing more is wanted of the model."""
        return len(self._ended) >= self._choices

    def feed(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A chunk's choices as they may leave."""
        return [choice for choice in choices if self._feed(choice)]

    def whole(self, choice: dict[str, Any]) -> None:
        """Cuts a whole choice."""
        text = self._shape.text(choice)
        at = self._find(text)
        if at is not None:
            self._shape.set_text(choice, text[:at])
            choice["finish_reason"] = "stop"

    def _feed(self, choice: dict[str, Any]) -> bool:
        index = choice["index"]
        if index in self._ended:
            return False
        fresh = self._shape.text(choice)
        text = self._held.pop(index, "") + fresh
        at = self._find(text)
        if at is not None:
            self._ended.add(index)
            self._shape.set_text(choice, text[:at])
            choice["finish_reason"] = "stop"
            return True
        kept = 0 if choice.get("finish_reason") is not None else self._beginning(text)
        if kept:
            self._held[index] = text[len(text) - kept :]
        shown = text[: len(text) - kept]
        if shown != fresh:
            self._shape.set_text(choice, shown)
        return True

    def _find(self, text: str) -> int | None:
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        return min(found) if found else None

    def _beginning(self, text: str) -> int:
        """Characters at the end that may begin a stop sequence."""
        return max(
            next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
            for stop in self._stops
        )
