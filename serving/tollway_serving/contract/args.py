"""One key of `engine.args`: what may stand there, and what the engine makes of it. Used by `engines` and its tables.

A ModelDeployment has whole numbers and strings only, so that other kinds are written as strings.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

_NUMBER = re.compile(r"[0-9]{1,9}([.][0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Arg:
    """`number` is a quoted decimal, `flag` the string true or false, `json` a string of JSON."""

    kind: Literal["integer", "string", "choice", "number", "flag", "json"]
    help: str
    minimum: int = 0
    maximum: int = 2**31 - 1
    choices: tuple[str, ...] = ()

    def wrong(self, value: int | str) -> str | None:
        """What to write instead; None if the value is fine."""
        match self.kind:
            case "integer" if not isinstance(value, int):
                return "write a whole number"
            case "integer" if not self.minimum <= int(value) <= self.maximum:
                return f"write a whole number from {self.minimum} to {self.maximum}"
            case "number" if not _NUMBER.fullmatch(str(value)):
                return 'write a number, with decimals as a string, such as "0.9"'
            case "number" if not self.minimum <= float(value) <= self.maximum:
                return f"write a number from {self.minimum} to {self.maximum}"
            case "choice" if str(value) not in self.choices:
                return f"write one of {', '.join(sorted(self.choices))}"
            case "flag" if value not in ("true", "false"):
                return 'write "true" or "false", with the quotes'
            case "json":
                try:
                    json.loads(str(value))
                except ValueError:
                    return "write JSON, in quotes"
        return None

    def meaning(self, value: int | str) -> Any:
        """The value as Python has it. For one that is not `wrong`."""
        match self.kind:
            case "integer":
                return int(value)
            case "number":
                return float(value)
            case "flag":
                return value == "true"
            case "json":
                return json.loads(str(value))
            case _:
                return str(value)
