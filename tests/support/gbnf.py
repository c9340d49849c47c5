"""Random sentences of a llama.cpp grammar: tests check that whatever a grammar allows is right, without a model.

Understands the notation that tollway_serving.engines writes: one rule a line, literals, classes, groups, repetition.
"""

import random
from collections.abc import Iterator
from typing import Any

Node = tuple[Any, ...]


class Sentences:
    def __init__(self, text: str) -> None:
        self.rules: dict[str, Node] = {}
        for line in text.strip("\n").split("\n"):  # not splitlines: a literal may hold U+2028 and its like
            name, _, body = line.partition(" ::= ")
            parser = _Parser(body)
            self.rules[name] = parser.alternatives()
            assert parser.at == len(body), f"{name}: {body[parser.at :]!r}"
        self._costs: dict[str, float] = {name: float("inf") for name in self.rules}
        for _ in self.rules:  # the least depth at which each rule ends
            for name, node in self.rules.items():
                self._costs[name] = min(self._costs[name], 1 + self._cost(node))

    def random(self, seed: int, budget: int = 40) -> str:
        """One sentence; repetitions get short and rules end soon once `budget` is used up."""
        chance = random.Random(seed)
        left = [budget]

        def write(node: Node) -> Iterator[str]:
            kind = node[0]
            left[0] -= 1
            if kind == "text":
                yield node[1]
            elif kind == "class":
                yield _member(node[1], node[2], chance)
            elif kind == "rule":
                yield from write(self.rules[node[1]])
            elif kind == "sequence":
                for part in node[1]:
                    yield from write(part)
            elif kind == "union":
                options = node[1]
                if left[0] < 0:
                    options = [min(options, key=self._cost)]
                yield from write(chance.choice(options))
            else:
                low, high = node[2], node[3]
                most = low if left[0] < 0 else min(low + 6 if high is None else high, low + 6)
                for _ in range(chance.randint(low, most)):
                    yield from write(node[1])

        return "".join(write(self.rules["root"]))

    def _cost(self, node: Node) -> float:
        kind = node[0]
        if kind == "rule":
            return self._costs[node[1]]
        if kind == "sequence":
            return max((self._cost(part) for part in node[1]), default=0)
        if kind == "union":
            return min(self._cost(part) for part in node[1])
        if kind == "repeat":
            return 0 if node[2] == 0 else self._cost(node[1])
        return 0


def _member(negated: bool, ranges: list[tuple[int, int]], chance: random.Random) -> str:
    def accept(code: int) -> bool:
        return any(low <= code <= high for low, high in ranges) != negated

    if not negated:
        low, high = chance.choice(ranges)
        codes = [chance.randint(low, high)]
    else:
        codes = [chance.choice([chance.randint(0x20, 0x7E), chance.randint(0xA1, 0x24F), 0x1F600]) for _ in range(99)]
    return chr(next(code for code in codes if accept(code)))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def space(self) -> None:
        while self.peek() == " ":
            self.at += 1

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence())
        return options[0] if len(options) == 1 else ("union", options)

    def sequence(self) -> Node:
        parts = []
        self.space()
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.operand()))
            self.space()
        return ("sequence", parts)

    def operand(self) -> Node:
        first = self.peek()
        if first == '"':
            self.at += 1
            text = ""
            while self.peek() != '"':
                assert self.peek(), "unclosed literal"
                text += self.char()
            self.at += 1
            return ("text", text)
        if first == "[":
            return self.char_class()
        if first == "(":
            self.at += 1
            inner = self.alternatives()
            assert self.peek() == ")", self.text[self.at :]
            self.at += 1
            return inner
        start = self.at
        while self.peek().isalnum() or self.peek() == "-":
            self.at += 1
        assert self.at > start, f"no operand at {self.text[start:]!r}"
        return ("rule", self.text[start : self.at])

    def char_class(self) -> Node:
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges = []
        while self.peek() != "]":
            low = high = ord(self.char())
            if self.peek() == "-" and self.text[self.at + 1] != "]":
                self.at += 1
                high = ord(self.char())
            ranges.append((low, high))
        self.at += 1
        return ("class", negated, ranges)

    def repeated(self, item: Node) -> Node:
        mark = self.peek()
        if mark and mark in "*+?":
            self.at += 1
            return ("repeat", item, int(mark == "+"), 1 if mark == "?" else None)
        if mark != "{":
            return item
        end = self.text.index("}", self.at)
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        self.at = end + 1
        return ("repeat", item, int(low), int(high) if high else None if comma else int(low))

    def char(self) -> str:
        char = self.peek()
        self.at += 1
        if char != "\\":
            return char
        kind = self.peek()
        self.at += 1
        if kind == "x":
            self.at += 2
            return chr(int(self.text[self.at - 2 : self.at], 16))
        return {"n": "\n", "r": "\r", "t": "\t"}.get(kind, kind)
