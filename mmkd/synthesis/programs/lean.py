"""A program without what its answer does not hang on, so that the same program written longer is no second one."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping

MOST_DEPTH = 40  # of an expression that stands where its name was
_CHANGING = frozenset(("append", "extend", "insert", "pop", "reverse", "sort"))  # methods that change what they are of


def lean(function: ast.FunctionDef, own: Mapping[str, ast.FunctionDef]) -> None:
    """Changes a function in place: values that nobody reads go, and `x = f()` with one use of x becomes that use.

    Tools and builtins change nothing, so a call whose value is not read goes too; a program that did so fails less
    often where that call would have failed. Where the order of things may matter, all stays as it is. Takes time in
    proportion to the function's size, which hostile programs choose.

    Args:
        own: the program's functions by name; these may change what they are given.
    """
    _drop(function, own)
    _Inlined(function, own).visit(function)
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef | ast.If | ast.For):
            node.body = node.body or [ast.Pass()]


def _drop(function: ast.FunctionDef, own: Mapping[str, ast.FunctionDef]) -> None:
    """Without assignments to names that are never read, and calls for nothing; and what only these read, and so on."""
    reads = Counter(_read(function))
    written: dict[str, list[ast.stmt]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _name(node) is not None:
            written.setdefault(str(_name(node)), []).append(node)
    dead: set[ast.AST] = set()
    todo: list[ast.stmt] = [one for one in ast.walk(function) if isinstance(one, ast.Expr)]
    todo += [one for name, every in written.items() if not reads[name] for one in every]
    while todo:
        statement = todo.pop()
        if _does_something(statement, own):
            continue
        dead.add(statement)
        for name in _read(statement):
            reads[name] -= 1
            if not reads[name]:
                todo += written.get(name, [])
    for node in ast.walk(function):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, [one for one in block if one not in dead])


def _does_something(statement: ast.stmt, own: Mapping[str, ast.FunctionDef]) -> bool:
    return any(
        isinstance(node, ast.Call)
        and (node.func.attr in _CHANGING if isinstance(node.func, ast.Attribute) else _called(node) in own)
        for node in ast.walk(statement)
    )


class _Inlined(ast.NodeTransformer):
    """Puts values where their names are read: of names that are written once and read once, in a later statement of the
    same block or inside one, if nothing that the value is made of can have changed by then."""

    def __init__(self, function: ast.FunctionDef, own: Mapping[str, ast.FunctionDef]):
        self.values: dict[str, ast.expr] = {}
        self.place: dict[ast.AST, int] = {node: place for place, node in enumerate(in_order(function))}
        self.reads = Counter(_read(function))
        self.writes = Counter(arg.arg for arg in function.args.args)
        self.read_at: dict[str, int] = {}
        self.changed: set[str] = set()
        for node, place in self.place.items():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.writes[node.id] += 1
            elif isinstance(node, ast.Name):
                self.read_at[node.id] = place
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                self.changed |= set(_names(node.value))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING:
                self.changed |= set(_names(node.func.value))
            elif isinstance(node, ast.Call) and _called(node) in own:
                self.changed |= {name for one in (*node.args, *node.keywords) for name in _names(one)}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.values.get(node.id, node) if isinstance(node.ctx, ast.Load) else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, self._block(block))
        for field, value in ast.iter_fields(node):
            if field in ("body", "orelse") and isinstance(value, list):
                continue
            if isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
            elif isinstance(value, list):
                value[:] = [self.visit(one) if isinstance(one, ast.AST) else one for one in value]
        return node

    def _block(self, block: list[ast.stmt]) -> list[ast.stmt]:
        kept = []
        end = self._last(block[-1]) if block else 0
        for statement in block:
            after = self._last(statement)
            statement = self.visit(statement)
            name = _name(statement) if isinstance(statement, ast.Assign) else None
            if name is not None and isinstance(statement, ast.Assign) and self._may(name, statement.value, after, end):
                self.values[name] = statement.value
            else:
                kept.append(statement)
        return kept

    def _may(self, name: str, value: ast.expr, after: int, end: int) -> bool:
        if self.writes[name] != 1 or self.reads[name] != 1 or not after < self.read_at[name] <= end:
            return False
        used = set(_names(value))
        return name not in self.changed and not used & self.changed and _plain(used, self.writes) and _shallow(value)

    def _last(self, statement: ast.AST) -> int:
        # Contexts and operators are one object wherever they stand.
        return max(self.place[node] for node in ast.walk(statement) if isinstance(node, ast.stmt | ast.expr))


def _plain(names: set[str], writes: Counter[str]) -> bool:
    return all(writes[name] <= 1 for name in names)


def _shallow(value: ast.AST) -> bool:
    level: list[ast.AST] = [value]
    for _ in range(MOST_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return True
    return False


def _name(statement: ast.AST) -> str | None:
    """Of an assignment to one name."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _called(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None


def _names(tree: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _read(tree: ast.AST) -> Iterator[str]:
    """Names that are read; `x += 1` reads x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes as they stand in the program, which `ast.walk` does not give."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from in_order(child)
