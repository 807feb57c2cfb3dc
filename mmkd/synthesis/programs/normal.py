"""The normal form of a program: equal for programs that do the same thing in the same way."""

from __future__ import annotations

import ast
import copy
import hashlib

from mmkd.synthesis.programs.lean import in_order, lean


def plain_tree(tree: ast.Module) -> ast.Module:
    """A copy without docstrings, annotations and statements that are a mere constant."""
    return ast.fix_missing_locations(_Plain().visit(copy.deepcopy(tree)))


def key_of(tree: ast.Module) -> str:
    """SHA-256 (hex) of a plain tree without what its answer does not hang on, its names numbered, keywords sorted.

    Values that are never read are left out, and names that are read once stand for what they name (lean.py). Names are
    numbered in order of appearance, the program's functions over the whole, other names in each function for itself.
    """
    tree = copy.deepcopy(tree)
    functions = [one for one in tree.body if isinstance(one, ast.FunctionDef)]
    known = {one.name: one for one in functions}
    numbers = {name: f"f{number}" for number, name in enumerate(known)}
    parameters = {name: [arg.arg for arg in one.args.args] for name, one in known.items()}
    for one in functions:
        lean(one, known)
    for one in functions:
        _Numbered(one, numbers, parameters).visit(one)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _Plain(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return ast.Pass()
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        return self._kept(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._kept(node)

    def _kept(self, node: ast.If | ast.For) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


class _Numbered(ast.NodeTransformer):
    def __init__(self, function: ast.FunctionDef, functions: dict[str, str], parameters: dict[str, list[str]]):
        self.functions, self.parameters = functions, parameters
        bound: list[str] = []
        for node in in_order(function):
            if isinstance(node, ast.arg):
                bound.append(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.append(node.id)
        self.names = {name: f"v{number}" for number, name in enumerate(dict.fromkeys(bound))}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id) or self.functions.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.names[node.arg]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.functions[node.name]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            # Keywords of the program's own functions are its own names: those of what is called.
            places = {name: f"v{place}" for place, name in enumerate(self.parameters[node.func.id])}
            for keyword in node.keywords:
                keyword.arg = places.get(keyword.arg or "", keyword.arg)
        node.keywords.sort(key=lambda one: one.arg or "")
        self.generic_visit(node)
        return node
