"""The programs that the checker lets pass, as a grammar that a language model's sampling can be held to.

Made of the checker's own rules and the tools' signatures, so that a construct, builtin, method or tool that is allowed
no more can be written no more. A grammar cannot know which names are defined; all else that it admits passes the check,
unless it is too large. It admits one layout (four spaces, no comments), one function, and of what the checker allows
the common part: no annotations, chained indices of targets, keywords of builtins beyond KEYWORDS.
"""

from __future__ import annotations

import ast
import json
import keyword
import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations

from mmkd.synthesis.programs.checker import ENTRY
from mmkd.synthesis.programs.parts import Box, Picture, Region, Thing
from mmkd.synthesis.programs.rules import BUILTINS, METHODS, NODES
from mmkd.synthesis.programs.tools.base import Parameter, Tool
from mmkd.synthesis.programs.tools.registry import Toolset

LEVELS = 4  # of blocks inside each other
KEYWORDS = ("default", "reverse", "start")  # of builtins
# Letters of texts: whole blocks in which nothing is invisible or unassigned, so that the checker takes them all.
# Latin, Greek, Cyrillic, Hiragana, Katakana, Han, Hangul.
LETTERS = "\u00a1-\u00ac\u00ae-\u0377\u0400-\u052f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"

COMPARISONS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
SUMS = {ast.Add: "+", ast.Sub: "-"}
PRODUCTS = {ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}
SIGNS = {ast.USub: "-", ast.UAdd: "+"}
HANDLES = (Picture, Thing, Region)  # kinds of parameters that no number and no text can be


def gbnf(tools: Toolset) -> str:
    """The grammar as GBNF, which vLLM, SGLang and llama.cpp read, and llguidance by its converter.

    Rules in capitals are made of characters alone: for a lexer, each is one token.
    """
    return "".join(f"{name} ::= {body}\n" for name, body in _rules(tools, ENTRY).items())


def _rules(tools: Toolset, entry: str) -> dict[str, str]:
    """Rules by name, the first one being the whole program."""
    rules = {"root": rf'"def {entry}(image):" body "\n"?', "body": _block(1, last='"return " exprs')}
    loops = {True: "loop", False: "block"}
    for level in range(2, LEVELS + 1):
        for inside, name in loops.items():
            last = ['"return " exprs', _if([ast.Pass], '"pass"')]
            last += [_if([ast.Break], '"break"'), _if([ast.Continue], '"continue"')] if inside else []
            rules[f"{name}{level}"] = _block(level, inside, last=_any(last))
    return rules | _statements() | _expressions() | _calls(tools) | _tokens(tools)


def _block(level: int, inside: bool = False, *, last: str) -> str:
    """Lines at one level of indentation; what leaves the block comes last. `inside`: of a loop."""
    line, inner = _text("\n" + "    " * level), f"{'loop' if inside else 'block'}{level + 1}"
    steps = ["simple"]
    if level < LEVELS:
        other = rf'({line} "elif " expr ":" {inner})* ({line} "else:" {inner})?'
        steps.append(_if([ast.If], f'"if " expr ":" {inner} {other}'))
        steps.append(_if([ast.For], f'"for " names " in " exprs ":" loop{level + 1}'))
    compound = _any(steps[1:]) if steps[1:] else ""
    end = _any([last, compound] if level == 1 else [*steps, last])
    return f"({line} ({_any(steps)}))* {line} ({end})"


def _statements() -> dict[str, str]:
    added = [op for kind, op in (SUMS | PRODUCTS).items() if kind in NODES]
    return {
        "simple": _any(
            [
                _if([ast.Assign], 'target (", " target)* " = " exprs'),
                _if([ast.AugAssign], f"NAME ({_any(_text(f' {op}= ') for op in added)}) expr"),
                _if([ast.Expr], 'NAME index* "." METHOD "(" args ")" | call'),
            ]
        ),
        "target": "NAME index?",
        "names": 'NAME (", " NAME)*',
        "index": '"[" expr "]"',
        "exprs": 'expr (", " expr)*',
    }


def _expressions() -> dict[str, str]:
    comparisons = _any(_text(f" {sign} ") for kind, sign in COMPARISONS.items() if kind in NODES)
    either = [_if([ast.List], '"[" exprs? "]"'), _if([ast.ListComp], '"[" expr each "]"')]
    either += [_if([ast.Tuple], '"(" expr ", " exprs ")"'), _if([ast.GeneratorExp], '"(" expr each ")"')]
    either += [_if([ast.Set], '"{" exprs "}"'), _if([ast.SetComp], '"{" expr each "}"')]
    either += [_if([ast.Dict], '"{" (pair (", " pair)*)? "}"'), _if([ast.DictComp], '"{" pair each "}"')]
    signs = _any(_text(sign) for kind, sign in SIGNS.items() if kind in NODES)
    parts = ["NAME", "call", _if([ast.JoinedStr], "FTEXT"), "TEXT", '"(" expr ")"', "display"]
    return {
        "expr": 'or (" if " or " else " expr)?' if ast.IfExp in NODES else "or",
        "or": 'and (" or " and)*' if ast.Or in NODES else "and",
        "and": 'not (" and " not)*' if ast.And in NODES else "not",
        "not": '"not " not | compared' if ast.Not in NODES else "compared",
        "compared": f"sum (({comparisons}) sum)*",
        "sum": f"product (({_spaced(SUMS)}) product)*",
        "product": f"signed (({_spaced(PRODUCTS)}) signed)*",
        "signed": f"({signs}) signed | power",
        "power": 'value ((" ** " | "**") signed)?' if ast.Pow in NODES else "value",
        # A number or constant has no methods here: `1.count` is not Python.
        "value": '"True" | "False" | "None" | NUMBER | part',
        "part": f"({_any(parts)}) trailer*",
        "display": _any(either),
        "pair": 'expr ": " expr',
        "each": '" for " names " in " or (" if " or)?',
        "trailer": '"[" expr "]" | "[" expr? ":" expr? "]" | "." METHOD "(" args ")"',
        "handle": "(NAME | call) trailer*",
    }


def _calls(tools: Toolset) -> dict[str, str]:
    keywords = _any(_text(f"{word}=") for word in KEYWORDS)
    called = [_called(tools[name]) for name in tools]
    return {
        "call": _any([*called, f'({_any(_text(name + "(") for name in sorted(BUILTINS))}) args ")"']),
        "args": '(expr each | exprs (", " named)? | named)?',
        "named": f"({keywords}) expr",
    }


def _called(tool: Tool) -> str:
    ways = list(_ways(tool.parameters))
    inside = _any(f"({way})" if way else "" for way in ways)
    return f'{_text(tool.name + "(")} ({inside}) ")"' if any(ways) else _text(f"{tool.name}()")


def _ways(parameters: Sequence[Parameter]) -> Iterator[str]:
    """Arguments by place, then by name, in the signature's order."""
    for count in range(len(parameters) + 1):
        placed, rest = parameters[:count], parameters[count:]
        free = [one for one in rest if not one.required]
        for left_out in chain.from_iterable(combinations(free, n) for n in range(len(free) + 1)):
            named = [one for one in rest if one not in left_out]
            each = [_of_kind(one) for one in placed] + [f"{_text(one.name + '=')} {_of_kind(one)}" for one in named]
            yield ' ", " '.join(each)


def _of_kind(parameter: Parameter) -> str:
    if parameter.kind in HANDLES:
        return "handle"
    return "(handle | display)" if parameter.kind in (Box, Region | Box) else "expr"


def _tokens(tools: Toolset) -> dict[str, str]:
    taken = {*keyword.kwlist, *BUILTINS, *tools}
    plain = rf" !#-&(-\[\]-z|~{LETTERS}"  # neither quotes, backslashes nor braces
    return {
        "NAME": _name(sorted(taken), ""),
        "METHOD": _any(_text(name) for name in sorted(METHODS)),
        "NUMBER": '("0" | [1-9] [0-9]*) ("." [0-9]+)?',
        "TEXT": rf""" "\"" [{plain}'{{}}]* "\"" | "'" [{plain}"{{}}]* "'" """.strip(),
        "FTEXT": rf""" "f\"" ([{plain}'] | "{{" NAME "}}")* "\"" """.strip(),
    }


def _name(taken: Sequence[str], before: str) -> str:
    """A name of ASCII letters, digits and underscores that is none of `taken`, all of which start with `before`.

    Written out as a tree of prefixes, since grammars know no "but not".
    """
    letters = string.ascii_letters + (string.digits + "_" if before else "")
    nexts: dict[str, list[str]] = {}
    for word in taken:
        if len(word) > len(before):
            nexts.setdefault(word[len(before)], []).append(word)
    free = _class([letter for letter in letters if letter not in nexts])
    ways = [
        f"{free} [A-Za-z0-9_]*",
        *(f'"{letter}" {_name(words, before + letter)}' for letter, words in nexts.items()),
    ]
    optional = "?" if before and before not in taken else ""
    return f"({' | '.join(ways)}){optional}"


def _class(letters: Sequence[str]) -> str:
    """[a-ce]: a class of characters as runs."""
    runs: list[str] = []
    for letter in sorted(letters):
        if runs and ord(letter) == ord(runs[-1][-1]) + 1:
            runs[-1] = runs[-1][0] + letter
        else:
            runs.append(letter)
    return "[" + "".join(run if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "]"


def _if(kinds: Iterable[type[ast.AST]], body: str) -> str:
    """The body where the checker allows these nodes, else nothing."""
    return body if all(kind in NODES for kind in kinds) else ""


def _spaced(signs: dict[type, str]) -> str:
    allowed = [sign for kind, sign in signs.items() if kind in NODES]
    return _any(_text(text) for sign in allowed for text in (f" {sign} ", sign))


def _any(ways: Iterable[str]) -> str:
    return " | ".join(way for way in ways if way)


def _text(text: str) -> str:
    return json.dumps(text)
