"""Whether what a program sees can change what it answers."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set

from mmkd.synthesis.programs.answers import as_text

MOST_ROUNDS = 50  # of going over a program; one that needs more is given the benefit of the doubt


def is_fed(tree: ast.Module, entry: str, looking: Set[str]) -> bool:
    """Whether an answer of `entry`, or a condition on its way there, hangs on the value of a call of a `looking` tool.

    False for `x = find(image, "cat"); return "yes"`, and where the same constant is answered in every case. True where
    in doubt: a list counts as seen once anything seen was put into it, and so do all names that it may go by.
    """
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    said = {text for node in ast.walk(functions[entry]) if isinstance(node, ast.Return) for text in _said(node.value)}
    if len(said) == 1 and None not in said:
        return False
    flow = _Flow(functions, looking)
    for _ in range(MOST_ROUNDS):
        before = flow.size()
        for function in functions.values():
            flow.over(function)
        if flow.size() == before:
            return entry in flow.fed
    return True


def _said(value: ast.expr | None) -> Iterator[str | None]:
    """The constants that an expression can be, as text; None for anything else."""
    if isinstance(value, ast.IfExp):
        yield from _said(value.body)
        yield from _said(value.orelse)
    else:
        yield as_text(value.value).lower() if isinstance(value, ast.Constant) else None


class _Flow:
    """What is known so far: `fed` functions, whose result hangs on what was seen, and `seen` names of each function."""

    def __init__(self, functions: dict[str, ast.FunctionDef], looking: Set[str]):
        self.functions, self.looking = functions, looking
        self.fed: set[str] = set()
        self.left: set[str] = set()  # functions that what was seen may end early: all in them hangs on it
        self.seen: dict[str, set[str]] = {name: set() for name in functions}
        self.alike = {name: _alike(function) for name, function in functions.items()}

    def size(self) -> int:
        return len(self.fed) + len(self.left) + sum(map(len, self.seen.values()))

    def over(self, function: ast.FunctionDef) -> None:
        self.here = function.name
        self._block(function.body, self.here in self.left)

    def _block(self, block: Iterable[ast.stmt], decided: bool) -> None:
        """decided: whether what was seen decides that this is reached."""
        for one in block:
            self._statement(one, decided)

    def _statement(self, one: ast.stmt, decided: bool) -> None:
        for value in (child for child in ast.iter_child_nodes(one) if isinstance(child, ast.expr)):
            self._effects(value, decided)
        if isinstance(one, ast.Return):
            if decided or (one.value is not None and self._hangs(one.value)):
                self.fed.add(self.here)
            if decided:
                self.left.add(self.here)
        elif isinstance(one, ast.If):
            decided = decided or self._hangs(one.test)
            self._block(one.body, decided)
            self._block(one.orelse, decided)
        elif isinstance(one, ast.For):
            decided = decided or self._hangs(one.iter) or self._ends_early(one)
            self._see(_names(one.target), decided)
            self._block(one.body, decided)
            self._block(one.orelse, decided)
        elif isinstance(one, ast.Assign | ast.AugAssign):
            decided = decided or self._hangs(one.value)
            for target in one.targets if isinstance(one, ast.Assign) else [one.target]:
                # What is put into a list can be read by any of its names.
                inside = any(isinstance(node, ast.Subscript) for node in ast.walk(target))
                inside = inside or isinstance(one, ast.AugAssign)
                see = self._see_all if inside else self._see
                see(_names(target), decided or (inside and self._hangs(target)))

    def _ends_early(self, loop: ast.For) -> bool:
        nodes = [node for one in loop.body for node in ast.walk(one)]
        leaves = any(isinstance(node, ast.Break | ast.Continue | ast.Return) for node in nodes)
        return leaves and any(self._hangs(node.test) for node in nodes if isinstance(node, ast.If))

    def _effects(self, value: ast.expr, decided: bool) -> None:
        """Names that an expression gives to its parts, lists that it changes, and what it hands to functions."""
        for node in ast.walk(value):
            if isinstance(node, ast.comprehension):
                self._see(_names(node.target), any(map(self._hangs, (node.iter, *node.ifs))))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = [*node.args, *(one.value for one in node.keywords)]
                self._see_all(_names(node.func.value), decided or any(map(self._hangs, given)))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
                self._handed(node, self.functions[node.func.id], decided)

    def _handed(self, call: ast.Call, function: ast.FunctionDef, decided: bool) -> None:
        names = [one.arg for one in function.args.args]
        pairs = [*zip(names, call.args), *((one.arg, one.value) for one in call.keywords)]
        for name, value in pairs:
            if name in names and self._hangs(value):
                self.seen[function.name].add(str(name))
            if decided or name in self.seen[function.name]:  # it may be a list that the function puts something into
                self._see_all(_names(value), True)

    def _see(self, names: Iterable[str], seen: bool) -> None:
        if seen:
            self.seen[self.here] |= set(names)

    def _see_all(self, names: Iterable[str], seen: bool) -> None:
        if seen:
            todo = [*names]
            known = set(todo)
            while todo:
                new = self.alike[self.here][todo.pop()] - known
                known |= new
                todo += new
            self.seen[self.here] |= known

    def _hangs(self, value: ast.AST) -> bool:
        """A variable is never called, and a function's name stands nowhere but before its call."""
        todo = [value]
        while todo:
            node = todo.pop()
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if called in self.fed or called in self.looking:
                return True
            if isinstance(node, ast.Name) and node.id in self.seen[self.here]:
                return True
            if called not in self.functions:  # what one of these is given, it may leave unused
                todo += ast.iter_child_nodes(node)
        return False


def _alike(function: ast.FunctionDef) -> dict[str, set[str]]:
    """name -> names that may stand for the same list, or for a part of it, since one was made of the other."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        else:
            continue
        for target, value in pairs:
            for name in _names(target):
                for other in _names(value):
                    found[name].add(other)
                    found[other].add(name)
    return found


def _names(tree: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
