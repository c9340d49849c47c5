"""Pieces of llama.cpp's grammar notation (GBNF) that `grammar` and `pattern` build from: literals, ranges, formats.

Pure text. Every piece is one operand: it can be followed by a repetition or stand in a sequence as it is.
"""

import itertools
from collections.abc import Iterator

CHAR = r'([^"\\\x7F\x00-\x1F] | "\\" ["\\bfnrt])'
r"""One character of a JSON string. Without \u escapes: a lone surrogate could be written with them."""

MAX_REPEAT = 2000
"""llama.cpp refuses larger repetitions."""

INTEGER = '("0" | "-"? [1-9] [0-9]{0,14})'
NUMBER = '("-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})?)'
MAX_NUMBER = 10**15

_YEAR = "[12] [0-9]{3}"
_DATE = (
    f'{_YEAR} "-" (("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
_CLOCK = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_CLOCK} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [+-] {_CLOCK})'
_LABEL = "[a-z0-9] ([a-z0-9-]{0,30} [a-z0-9])?"
_HOST = f'({_LABEL} "."){{1,4}} [a-z]{{2,12}}'
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9])'
_COUNT = "[1-9] [0-9]{0,3}"
_CLOCKED = f'("T" ({_COUNT} "H" ({_COUNT} "M")? ({_COUNT} "S")? | {_COUNT} "M" ({_COUNT} "S")? | {_COUNT} "S"))'

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "duration": f'"P" ({_COUNT} "W" | {_COUNT} "D" {_CLOCKED}? | {_CLOCKED})',
    "email": f'[A-Za-z0-9] [A-Za-z0-9_+-]{{0,30}} ("." [A-Za-z0-9_+-]{{1,30}}){{0,3}} "@" {_HOST}',
    "hostname": _HOST,
    "ipv4": f'{_BYTE} ("." {_BYTE}){{3}}',
    "ipv6": '[0-9a-f]{1,4} (":" [0-9a-f]{1,4}){7}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [1-8] [0-9a-f]{3} "-" [89ab] [0-9a-f]{3} "-" [0-9a-f]{12}',
    "uri": f'"http" "s"? "://" {_HOST} ("/" [A-Za-z0-9._~-]{{1,40}}){{0,8}} "/"? ("?" [A-Za-z0-9._~=&-]{{1,80}})?',
}
"""The inside of a JSON string by JSON Schema's `format`. Narrower than the format: everything written is valid."""


def literal(text: str) -> str:
    """Exactly this text; an empty one is the empty operand."""
    return '"' + "".join(_escaped(char, '"\\') for char in text) + '"'


def char_class(ranges: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> str:
    """One character out of these inclusive ranges of code points."""
    special = '[]^-\\"'
    parts = []
    for low, high in ranges:
        parts.append(_escaped(chr(low), special) + ("-" + _escaped(chr(high), special) if high > low else ""))
    return "[" + "".join(parts) + "]"


def _escaped(char: str, special: str) -> str:
    code = ord(char)
    if char in special and char in '"\\[]':
        return "\\" + char
    if code < 0x20 or code == 0x7F or char in special:
        return f"\\x{code:02X}"
    return char


def union(options: list[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


def repeat(item: str, low: int, high: int | None) -> str:
    """`item`, `low` to `high` times; None: without an end."""
    if high is None:
        return f"{item}*" if low == 0 else f"{item}{{{low},}}"
    return f"{item}{{{low}}}" if low == high else f"{item}{{{low},{high}}}"


def listed(item: str, low: int, high: int) -> str:
    """`low` to `high` items with ", " between them."""
    if high == 0:
        return '""'
    another = f'(", " {item})'
    more = f"{item} {repeat(another, max(0, low - 1), high - 1)}" if high > 1 else item
    return f"({more})" if low else f"({more})?"


def decimals(low: int, high: int, places: int) -> str | None:
    """The numbers from low/10^places to high/10^places, each with that many decimals; None if there are none."""
    options: list[str] = []
    if low <= -1:
        options += [f'"-" {option}' for option in _magnitudes(max(1, -high), -low, places)]
    if high >= 0:
        options += _magnitudes(max(0, low), high, places)
    return union(options) if options else None


def _magnitudes(low: int, high: int, places: int) -> list[str]:
    """One sequence for each number of digits."""
    options = []
    width = max(len(str(low)), places + 1)
    while low <= high:
        top = min(high, 10**width - 1)
        options.append(_same_width(str(low).zfill(width), str(top).zfill(width), places))
        low, width = top + 1, width + 1
    return options


def _same_width(low: str, high: str, places: int) -> str:
    """Digits from `low` to `high`, which are equally long, with the decimal point before the last `places`."""
    if not low:
        return '""'
    point = '"." ' if places and len(low) == places else ""
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return point + _free(len(low), places if len(low) > places else 0)
    if low[0] == high[0]:
        inner = _same_width(low[1:], high[1:], places)
        return f'{point}"{low[0]}"' + (f" {inner}" if rest else "")
    options = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        options.append(f'"{first}" {_same_width(low[1:], "9" * rest, places)}')
        first += 1
    tail = None
    if high[1:] != "9" * rest:
        tail = f'"{last}" {_same_width("0" * rest, high[1:], places)}'
        last -= 1
    if first <= last:
        digit = f"[{first}-{last}]" if first < last else f'"{first}"'
        options.append(digit + (f" {_same_width('0' * rest, '9' * rest, places)}" if rest else ""))
    options += [tail] if tail else []
    return point + union(options)


def _free(width: int, places: int) -> str:
    """Any digits; `places` of them after the point, where the point is still to come."""
    if not places:
        return repeat("[0-9]", width, width)
    return f'{repeat("[0-9]", width - places, width - places)} "." {repeat("[0-9]", places, places)}'


def names(prefix: str) -> Iterator[str]:
    return (f"{prefix}{number}" for number in itertools.count())
