r"""Regular expressions of JSON Schema's `pattern` as GBNF; called by `grammar`.

The part of ECMA's syntax that is regular: literals, classes, groups, alternation, repetition, anchors at the ends.
`\d`, `\w` and `\s` are ASCII's and so are their opposites, which every dialect of validators accepts.
"""

from tollway_serving.engines import gbnf

MAX_LENGTH = 1000
MAX_NESTING = 20
LOOSE_END = 64
"""Characters before or after a match where the pattern has no anchor."""

Ranges = list[tuple[int, int]]

_DIGIT: Ranges = [(48, 57)]
_WORD: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
_SPACE: Ranges = [(9, 13), (32, 32)]
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_WRITTEN = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}  # in a JSON string
_DOT_EXCLUDES: Ranges = [(10, 10), (13, 13), (0x2028, 0x2029)]
_ASCII, _UNICODE = 0x7E, 0x10FFFF


class UnsupportedPatternError(Exception):
    """The message says what is not supported."""


def pattern_grammar(pattern: str, any_char: str) -> str:
    """The operand for the inside of a JSON string that contains a match. `any_char`: one character of any string."""
    if len(pattern) > MAX_LENGTH:
        raise UnsupportedPatternError(f"longer than {MAX_LENGTH} characters")
    parser = _Parser(pattern)
    loose = gbnf.repeat(any_char, 0, LOOSE_END)
    options = []
    while True:
        begins = parser.take("^")
        body = parser.sequence(0)
        ends = parser.take("$")
        options.append(" ".join(([] if begins else [loose]) + [body] + ([] if ends else [loose])))
        if not parser.take("|"):
            break
    if not parser.done():
        raise UnsupportedPatternError(f"{parser.rest()!r}")
    return "(" + " | ".join(options) + ")"


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def done(self) -> bool:
        return self._at >= len(self._text)

    def rest(self) -> str:
        return self._text[self._at : self._at + 12]

    def take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def sequence(self, depth: int) -> str:
        parts = []
        while not self.done() and self._text[self._at] not in "|)$":
            parts.append(self._quantified(self._atom(depth)))
        return " ".join(parts) or '""'

    def _alternatives(self, depth: int) -> str:
        if depth > MAX_NESTING:
            raise UnsupportedPatternError("groups are nested too deeply")
        options = [self.sequence(depth)]
        while self.take("|"):
            options.append(self.sequence(depth))
        if not self.take(")"):
            raise UnsupportedPatternError(f"{self.rest()!r} inside a group")
        return "(" + " | ".join(options) + ")"

    def _atom(self, depth: int) -> str:
        if self.take("("):
            if self.take("?") and not self.take(":"):
                raise UnsupportedPatternError("look-around and named groups")
            return self._alternatives(depth + 1)
        if self.take("["):
            return self._class()
        if self.take("."):
            return _one_of(_without(_DOT_EXCLUDES, _UNICODE))
        if self._text[self._at] in "*+?{^":
            raise UnsupportedPatternError(f"{self.rest()!r}")
        ranges, _ = self._char()
        return _one_of(ranges)

    def _quantified(self, atom: str) -> str:
        low: int
        high: int | None
        if self.take("*"):
            low, high = 0, None
        elif self.take("+"):
            low, high = 1, None
        elif self.take("?"):
            low, high = 0, 1
        elif self.take("{"):
            low, high = self._braces()
        else:
            return atom
        self.take("?")  # lazy: the same language
        if max(low, high or 0) > gbnf.MAX_REPEAT:
            raise UnsupportedPatternError(f"repetitions above {gbnf.MAX_REPEAT}")
        if high == 0:
            return '""'
        return gbnf.repeat(f"({atom})", low, high)

    def _braces(self) -> tuple[int, int | None]:
        end = self._text.find("}", self._at)
        inside = self._text[self._at : end] if end > 0 else ""
        low, comma, high = inside.partition(",")
        if not (low.isascii() and low.isdigit()) or (high and not (high.isascii() and high.isdigit())):
            raise UnsupportedPatternError("'{' without a count")
        self._at = end + 1
        most = (int(high) if high else None) if comma else int(low)
        if most is not None and most < int(low):
            raise UnsupportedPatternError("a repetition whose end is below its start")
        return int(low), most

    def _char(self) -> tuple[Ranges, bool]:
        """One character or escape, as ranges, and whether it is an escape for a class such as a digit."""
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return [(ord(char), ord(char))], False
        if self.done():
            raise UnsupportedPatternError("a backslash at the end")
        char = self._text[self._at]
        self._at += 1
        for name, ranges in (("d", _DIGIT), ("w", _WORD), ("s", _SPACE)):
            if char == name:
                return ranges, True
            if char == name.upper():
                return _without(ranges, _ASCII), True
        if char in _CONTROLS:
            return [(_CONTROLS[char], _CONTROLS[char])], False
        if char in "xu":
            width = 2 if char == "x" else 4
            digits = self._text[self._at : self._at + width]
            if len(digits) != width or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise UnsupportedPatternError(f"\\{char} without {width} hexadecimal digits")
            self._at += width
            return [(int(digits, 16), int(digits, 16))], False
        if char.isalnum():
            raise UnsupportedPatternError(f"\\{char}")
        return [(ord(char), ord(char))], False

    def _class(self) -> str:
        negated = self.take("^")
        ranges: Ranges = []
        ascii_only = False
        while not self.take("]"):
            if self.done():
                raise UnsupportedPatternError("'[' without an end")
            one, named = self._char()
            ascii_only |= named
            follows = self._text[self._at : self._at + 2]
            if not named and len(follows) == 2 and follows[0] == "-" and follows[1] != "]":
                self._at += 1
                other, named = self._char()
                if named or other[0][0] < one[0][0]:
                    raise UnsupportedPatternError("a range whose end is below its start")
                one = [(one[0][0], other[0][0])]
            ranges += one
        if negated:
            ranges = _without(ranges, _ASCII if ascii_only else _UNICODE)
        return _one_of(ranges)


def _without(ranges: Ranges, top: int) -> Ranges:
    """Every code point up to `top` that is in none of `ranges`."""
    left, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            left.append((start, min(low - 1, top)))
        start = max(start, high + 1)
    if start <= top:
        left.append((start, top))
    return [(low, high) for low, high in left if low <= high]


def _one_of(ranges: Ranges) -> str:
    """One of these characters as a JSON string writes it. Control characters that need \\u escapes are left out."""
    plain = [*((code, code) for code in (0x22, 0x5C, 0x7F)), (0, 0x1F), (0xD800, 0xDFFF)]
    open_ranges = _without(_without(ranges, _UNICODE) + plain, _UNICODE)
    options = [gbnf.char_class(open_ranges)] if open_ranges else []
    for code, form in _WRITTEN.items():
        if any(low <= code <= high for low, high in ranges):
            options.append(gbnf.literal(form))
    if not options:
        raise UnsupportedPatternError("a class without any character that JSON writes plainly")
    return gbnf.union(options)
