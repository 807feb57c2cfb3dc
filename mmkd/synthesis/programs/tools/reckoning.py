"""Numbers."""

from __future__ import annotations

import ast
import math
import operator

from mmkd.config.problems import near
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.tools.base import tool
from mmkd.synthesis.programs.tools.view import View

HOW = {
    "more": operator.gt,
    "fewer": operator.lt,
    "equal": operator.eq,
    "at least": operator.ge,
    "at most": operator.le,
}
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MOST_TEXT = 200


@tool()
def compare(view: View, first: float, how: str, second: float) -> bool:
    """Whether the first number is more, fewer, equal, at least or at most the second."""
    if how not in HOW:
        raise Stop(
            Reason.BAD_ARGUMENT, f"compare: {how[:40]!r} is no comparison.{near(how, HOW)} Use {', '.join(HOW)}."
        )
    return HOW[how](first, second)


@tool()
def calculate(view: View, expression: str) -> float:
    """The value of an expression of numbers with + - * / // % and brackets, e.g. "(3 + 4) / 2"."""
    if len(expression) > MOST_TEXT:
        raise Stop(Reason.BAD_ARGUMENT, f"calculate: {len(expression):,} characters; at most {MOST_TEXT}.")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Stop(Reason.BAD_ARGUMENT, f"calculate: {expression[:60]!r} is no expression of numbers.") from None
    except (ZeroDivisionError, OverflowError) as error:
        raise Stop(Reason.BAD_ARGUMENT, f"calculate: {expression[:60]!r}: {error}.") from None
    return value


def _value(node: ast.expr) -> float:
    """Walks the tree; nothing is ever evaluated as code. No powers, so that numbers stay small."""
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError(ast.dump(node)[:60])
