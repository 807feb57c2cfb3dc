"""Random texts of a GBNF grammar, drawn from its rules as they are written."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[A-Za-z0-9]+|[()|*+?])')
# Parsed: text | ("rule", name) | ("class", characters) | ("either", ways) | ("all", parts) | ("times", part, least, 2)
Part = Any


class Texts:
    """`Texts(grammar)(seed)`: one text. `given` draws the texts of some rules from lists instead."""

    def __init__(self, grammar: str, given: Mapping[str, list[str]] | None = None):
        self.given = given or {}
        self.rules = {name: _parsed(body) for name, body in (line.split(" ::= ") for line in grammar.splitlines())}
        self.depths = dict.fromkeys(self.rules, 10_000)
        while (found := {name: 1 + self._depth(body) for name, body in self.rules.items()}) != self.depths:
            self.depths = found

    def __call__(self, seed: int) -> str:
        self.random, self.free = random.Random(seed), 250
        return self._text(("rule", "root"), 40)

    def _text(self, part: Part, left: int) -> str:
        """left: rules inside each other from here on, none once `free` is spent; more where the grammar needs them."""
        if isinstance(part, str):
            return part
        kind, inside, *times = part
        if kind == "rule":
            if inside in self.given:
                return self.random.choice(self.given[inside])
            self.free -= 1
            return self._text(self.rules[inside], left - 1 if self.free > 0 else 0)
        if kind == "class":
            return self.random.choice(inside)
        if kind == "all":
            return "".join(self._text(one, left) for one in inside)
        if kind == "either":
            able = [one for one in inside if self._depth(one) <= left]
            return self._text(self.random.choice(able or [min(inside, key=self._depth)]), left)
        least, most = times
        number = self.random.randint(least, most) if self._depth(inside) <= left else least
        return "".join(self._text(inside, left) for _ in range(number))

    def _depth(self, part: Part) -> int:
        """Rules inside each other that it takes at least."""
        if isinstance(part, str):
            return 0
        kind, inside, *times = part
        if kind == "rule":
            return 0 if inside in self.given else self.depths[inside]
        if kind == "class":
            return 0
        if kind == "times":
            return self._depth(inside) if times[0] else 0
        return (min if kind == "either" else max)(map(self._depth, inside))


def _parsed(body: str) -> Part:
    tokens = TOKEN.findall(body)[::-1]
    part = _either(tokens)
    assert not tokens, body
    return part


def _either(tokens: list[str]) -> Part:
    ways = [_all(tokens)]
    while tokens and tokens[-1] == "|":
        tokens.pop()
        ways.append(_all(tokens))
    return ways[0] if len(ways) == 1 else ("either", ways)


def _all(tokens: list[str]) -> Part:
    parts: list[Part] = []
    while tokens and tokens[-1] not in ("|", ")"):
        token = tokens.pop()
        if token == "(":
            part = _either(tokens)
            assert tokens.pop() == ")"
        elif token.startswith('"'):
            part = ast.literal_eval(token)
        elif token.startswith("["):
            part = ("class", _characters(token[1:-1]))
        else:
            part = ("rule", token)
        if tokens and tokens[-1] in ("*", "+", "?"):
            part = ("times", part, *{"*": (0, 2), "+": (1, 2), "?": (0, 1)}[tokens.pop()])
        parts.append(part)
    return parts[0] if len(parts) == 1 else ("all", parts)


def _characters(inside: str) -> str:
    found = ""
    for first, last in re.findall(r"(\\?.)(?:-(\\?.))?", inside):
        first, last = first[-1], (last or first)[-1]
        found += "".join(map(chr, range(ord(first), ord(last) + 1)))
    return found
