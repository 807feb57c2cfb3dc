"""What a program may be made of."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from mmkd.config.problems import near
from mmkd.synthesis.programs.reasons import Reason
from mmkd.synthesis.programs.tools.registry import Toolset

MOST_SOURCE, MOST_NODES, MOST_DEPTH = 8_000, 2_000, 40
MOST_BITS = 1024  # of a whole number; Python refuses to write out one of some 14,000, which 0xFF.. soon has

# fmt: off
BUILTINS = frozenset((
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed",
    "round", "set", "sorted", "str", "sum", "tuple", "zip",
))
METHODS = frozenset((
    "append", "copy", "count", "endswith", "extend", "get", "index", "insert", "items", "join", "keys", "lower", "pop",
    "replace", "reverse", "sort", "split", "startswith", "strip", "title", "upper", "values",
))
NODES: tuple[type[ast.AST], ...] = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AnnAssign, ast.AugAssign,
    ast.For, ast.If, ast.Expr, ast.Pass, ast.Break, ast.Continue,
    ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow,
    ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.IfExp, ast.Compare,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn,
    ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice, ast.Name, ast.Load, ast.Store, ast.Constant,
    ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    ast.comprehension, ast.JoinedStr, ast.FormattedValue,
)
WORDS = {
    ast.Import: "import", ast.ImportFrom: "import", ast.ClassDef: "class", ast.Lambda: "lambda", ast.While: "while",
    ast.With: "with", ast.Try: "try", ast.Raise: "raise", ast.Global: "global", ast.Nonlocal: "nonlocal",
    ast.Delete: "del", ast.Await: "await", ast.AsyncFunctionDef: "async", ast.Yield: "yield", ast.YieldFrom: "yield",
    ast.Starred: "a starred argument", ast.NamedExpr: ":=", ast.Match: "match", ast.Assert: "assert",
    ast.BitOr: "|", ast.BitAnd: "&", ast.BitXor: "^", ast.Invert: "~", ast.LShift: "<<", ast.RShift: ">>",
    ast.MatMult: "@", ast.Del: "del",
}
# fmt: on


@dataclass(frozen=True)
class Problem:
    line: int  # from 1
    column: int  # from 1
    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class Rules:
    """Looks at a whole tree and lists what is wrong with it.

    Args:
        entry: the function that the program has to define, with one parameter.
    """

    def __init__(self, tools: Toolset, entry: str):
        self.tools, self.entry = tools, entry

    def problems(self, tree: ast.Module) -> list[Problem]:
        self.found: list[Problem] = []
        functions = [one for one in tree.body if isinstance(one, ast.FunctionDef)]
        self.functions = {one.name for one in functions}
        for parent in ast.walk(tree):
            for node in ast.iter_child_nodes(parent):
                # Parts of what is refused anyway are not told one by one; operators have no place of their own.
                if not isinstance(
                    node, (*NODES, ast.alias, ast.withitem, ast.ExceptHandler, ast.match_case, ast.pattern)
                ):
                    name = WORDS.get(type(node), type(node).__name__)
                    self._say(
                        node if hasattr(node, "lineno") else parent,
                        Reason.NOT_ALLOWED,
                        f"{name} is not allowed in a program.",
                    )
        if self.found:  # what follows reads allowed nodes only
            return self.found
        self._top(tree, functions)
        for function in functions:
            self._function(function)
        return self.found

    def _say(self, node: ast.AST, reason: Reason, message: str) -> None:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        self.found.append(Problem(line, column + 1, reason, message))

    def _top(self, tree: ast.Module, functions: list[ast.FunctionDef]) -> None:
        for one in tree.body:
            docstring = isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
            if not isinstance(one, ast.FunctionDef) and not docstring:
                self._say(one, Reason.NOT_ALLOWED, "only functions may stand at the top of a program.")
        entries = [one for one in functions if one.name == self.entry]
        if len(entries) != 1 or len(entries[0].args.args) != 1:
            hint = "" if entries else near(self.entry, self.functions)
            where = entries[-1] if entries else tree
            self._say(where, Reason.NOT_ALLOWED, f"one function {self.entry}(image) is needed.{hint}")
        for one in functions:
            if one.name in self.tools or one.name in BUILTINS:
                self._say(one, Reason.NOT_ALLOWED, f"{one.name} is a tool or builtin; call the function otherwise.")

    def _function(self, function: ast.FunctionDef) -> None:
        arguments = function.args
        if function.decorator_list:
            self._say(function.decorator_list[0], Reason.NOT_ALLOWED, "a decorator is not allowed in a program.")
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs or arguments.defaults:
            self._say(function, Reason.NOT_ALLOWED, f"{function.name}: plain parameters only, without defaults.")
        for nested in ast.walk(function):
            if isinstance(nested, ast.FunctionDef) and nested is not function:
                self._say(nested, Reason.NOT_ALLOWED, "a function inside a function is not allowed.")
        skipped = _annotations(function)
        nodes = [node for one in _children(function) for node in _walk(one, skipped)]
        local = {one.arg for one in arguments.args}
        local |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for name in (function.name, *local):
            self._name(function, name)
        for node in nodes:
            self._node(node, local)

    def _node(self, node: ast.AST, local: set[str]) -> None:
        if isinstance(node, ast.Call):
            self._call(node, local)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._read(node, local)
        elif isinstance(node, ast.FormattedValue) and (node.format_spec or node.conversion != -1):
            self._say(node, Reason.NOT_ALLOWED, "an f-string takes no conversion and no format.")
        elif isinstance(node, ast.comprehension) and node.is_async:
            self._say(node.target, Reason.NOT_ALLOWED, "async is not allowed in a program.")
        elif isinstance(node, ast.Constant) and not (node.value is None or type(node.value) in (bool, int, float, str)):
            self._say(node, Reason.NOT_ALLOWED, f"a constant of type {type(node.value).__name__} is not allowed.")
        elif isinstance(node, ast.Constant) and type(node.value) is int and node.value.bit_length() > MOST_BITS:
            found = f"a whole number of {node.value.bit_length():,} bits"
            self._say(node, Reason.TOO_LARGE, f"{found}; at most {MOST_BITS:,}.")
        elif isinstance(node, ast.Dict) and None in node.keys:
            self._say(node, Reason.NOT_ALLOWED, "** is not allowed in a program.")
        elif isinstance(node, ast.Attribute) and not getattr(node, "called", False):
            self._say(node, Reason.NOT_ALLOWED, f".{node.attr} is not allowed: things and images have no attributes.")

    def _name(self, node: ast.AST, name: str) -> None:
        if name.startswith("_"):
            self._say(node, Reason.NOT_ALLOWED, f"the name {name} starts with _; use another.")

    def _read(self, node: ast.Name, local: set[str]) -> None:
        if node.id in local or node.id in BUILTINS:
            return
        if node.id in self.tools or node.id in self.functions:
            if not getattr(node, "called", False):
                self._say(node, Reason.NOT_ALLOWED, f"{node.id} is a function and has to be called: {node.id}(..).")
            return
        if node.id in self.tools.lacking:
            needed = f"{node.id} needs a back end for {self.tools.lacking[node.id]!r}; none is given."
            self._say(node, Reason.UNKNOWN_NAME, needed)
            return
        known = {*local, *self.tools, *BUILTINS, *self.functions}
        self._say(node, Reason.UNKNOWN_NAME, f"{node.id} is not defined.{near(node.id, known)}")

    def _call(self, node: ast.Call, local: set[str]) -> None:
        if any(keyword.arg is None for keyword in node.keywords):
            self._say(node, Reason.NOT_ALLOWED, "** is not allowed in a program.")
            return
        if not (isinstance(node.func, ast.Name) and node.func.id in self.tools):  # a tool knows its parameters
            for keyword in node.keywords:
                self._name(keyword, keyword.arg or "")
        called = node.func
        if isinstance(called, ast.Attribute):
            called.called = True  # type: ignore[attr-defined]  # read by _node, which comes to it later
            if called.attr not in METHODS:
                hint = near(called.attr, METHODS)
                self._say(called, Reason.NOT_ALLOWED, f"the method .{called.attr} is not allowed.{hint}")
        elif not isinstance(called, ast.Name):
            self._say(called, Reason.NOT_ALLOWED, "only a name can be called.")
        elif called.id in local:
            self._say(called, Reason.NOT_ALLOWED, f"{called.id} is a variable here and cannot be called; rename it.")
        else:
            called.called = True  # type: ignore[attr-defined]
            if called.id in self.tools and called.id not in self.functions:
                self._tool_call(node, called.id)

    def _tool_call(self, node: ast.Call, name: str) -> None:
        tool = self.tools[name]
        names = [one.name for one in tool.parameters]
        given = names[: len(node.args)]
        if len(node.args) > len(names):
            found = f"{len(node.args)} arguments"
            self._say(node, Reason.WRONG_ARGUMENTS, f"{name}: {found}; it is {tool.signature}.")
        for keyword in node.keywords:
            word = keyword.arg or ""
            if word not in names or word in given:
                hint = " is given twice." if word in given else f" is no parameter.{near(word, names)}"
                self._say(keyword, Reason.WRONG_ARGUMENTS, f"{name}: {word}{hint} It is {tool.signature}.")
            given.append(word)
        missing = [one.name for one in tool.parameters if one.required and one.name not in given]
        if missing:
            self._say(node, Reason.WRONG_ARGUMENTS, f"{name}: {missing[0]} is missing; it is {tool.signature}.")


def _annotations(function: ast.FunctionDef) -> set[ast.AST]:
    """Annotations are dropped before a program runs, so their names need not exist."""
    found: list[ast.AST | None] = [function.returns, *(one.annotation for one in function.args.args)]
    found += [node.annotation for node in ast.walk(function) if isinstance(node, ast.AnnAssign)]
    return {one for one in found if one is not None}


def _children(function: ast.FunctionDef) -> list[ast.AST]:
    return [function.args, *function.body]


def _walk(node: ast.AST, skipped: set[ast.AST]) -> Iterable[ast.AST]:
    """Parents before children; not into `skipped`."""
    if node in skipped:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, skipped)
