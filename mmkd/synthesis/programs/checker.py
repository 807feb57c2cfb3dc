"""Reads a program before it runs: plain functions over our tools, and nothing else.

Not the sandbox (the executor holds without it), but what makes errors early, clear and cheap, and programs comparable.
"""

from __future__ import annotations

import ast
import io
import tokenize
import unicodedata
from dataclasses import dataclass

from mmkd.errors import DataError
from mmkd.synthesis.programs.feeding import is_fed
from mmkd.synthesis.programs.normal import key_of, plain_tree
from mmkd.synthesis.programs.reasons import Reason
from mmkd.synthesis.programs.rules import MOST_DEPTH, MOST_NODES, MOST_SOURCE, Problem, Rules
from mmkd.synthesis.programs.tools.registry import Toolset

ENTRY = "answer"  # the function that is called with the image


@dataclass(frozen=True)
class Program:
    """A program that passed the check.

    Attributes:
        source: rewritten from its tree, without comments, annotations and docstrings.
        key: SHA-256 of its normal form; the same for programs that differ only in names, layout, comments, values that
            they do not use, and names for what is used once.
        tools: names of the tools it calls, sorted.
        fed: whether what a tool sees can change its answer.
    """

    source: str
    key: str
    tools: tuple[str, ...]
    fed: bool

    @property
    def code(self) -> str:
        """What the executor runs."""
        return f"{self.source}\n{ENTRY}(image)\n"


class ProgramError(DataError):
    """A program that does not pass the check; `problems` in order of place."""

    def __init__(self, problems: list[Problem]):
        self.problems = sorted(problems, key=lambda one: (one.line, one.column))
        super().__init__("\n".join(map(str, self.problems)))

    @property
    def reason(self) -> Reason:
        return self.problems[0].reason


def check(source: str, tools: Toolset) -> Program:
    """The program, ready to run.

    Raises: ProgramError that lists every problem with line, column, and the nearest name that is allowed.
    """
    tree = _parsed(source)
    problems = Rules(tools, ENTRY).problems(tree)
    if problems:
        raise ProgramError(problems)
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    tree = plain_tree(tree)
    defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
    used = tuple(name for name in sorted(called - defined) if name in tools)
    looking = {name for name in tools if tools[name].grounded} - defined
    return Program(ast.unparse(tree), key_of(tree), used, is_fed(tree, ENTRY, looking))


def _parsed(source: str) -> ast.Module:
    if len(source) > MOST_SOURCE:
        raise ProgramError([Problem(1, 1, Reason.TOO_LARGE, f"{len(source):,} characters; at most {MOST_SOURCE:,}.")])
    # Not by splitlines, which would swallow some of what is looked for.
    for number, line in enumerate(source.replace("\r\n", "\n").split("\n"), 1):
        for column, character in enumerate(line, 1):
            if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character != "\t":
                what = f"the invisible character U+{ord(character):04X}; remove it."
                raise ProgramError([Problem(number, column, Reason.NOT_ALLOWED, what)])
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ProgramError(
            [Problem(error.lineno or 1, error.offset or 1, Reason.NOT_PYTHON, f"{error.msg}.")]
        ) from None
    except ValueError as error:
        raise ProgramError([Problem(1, 1, Reason.NOT_PYTHON, f"{error}.")]) from None
    except (RecursionError, MemoryError):
        raise ProgramError([Problem(1, 1, Reason.TOO_LARGE, "nested too deeply to be read.")]) from None
    _plain_names(source)
    _measured(tree)
    return tree


def _plain_names(source: str) -> None:
    """Python reads many letters as the plain one they look like; here a name is written as it is read."""
    problems = [
        Problem(token.start[0], token.start[1] + 1, Reason.NOT_ALLOWED, f"the name {token.string!a}: use a-z, 0-9, _.")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME and not token.string.isascii()
    ]
    if problems:
        raise ProgramError(problems)


def _measured(tree: ast.Module) -> None:
    """Counts nodes and depth without recursion, before anything that walks recursively."""
    level: list[ast.AST] = [tree]
    total = depth = 0
    while level:
        total, depth = total + len(level), depth + 1
        if total > MOST_NODES or depth > MOST_DEPTH:
            what = f"more than {MOST_NODES:,} nodes, or nested deeper than {MOST_DEPTH}."
            raise ProgramError([Problem(1, 1, Reason.TOO_LARGE, what)])
        level = [child for node in level for child in ast.iter_child_nodes(node)]
