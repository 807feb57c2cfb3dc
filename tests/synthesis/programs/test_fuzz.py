"""Random programs, arguments and results: a clear verdict each, no exception, no hang. Budgets are small by default;
MMKD_FUZZ=5000 gives each test as many examples."""

from __future__ import annotations

import ast
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.checker import ProgramError, check
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Reason, Stop, Verdict
from mmkd.synthesis.programs.runner import Runner
from mmkd.synthesis.programs.server import ToolServer
from mmkd.synthesis.programs.tools import View, installed
from mmkd.synthesis.programs.values import MOST_DEPTH, plain

EXAMPLES = int(os.environ.get("MMKD_FUZZ", "40"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
PICTURE = Image.new("RGB", (64, 64), (240, 240, 240))
PICTURE.paste((255, 0, 0), (10, 10, 30, 30))
LIMITS = Limits(seconds=0.1, wall_seconds=5)

NAMES = st.sampled_from(
    [*installed(), "image", "x", "y", "answer", "len", "open", "__import__", "eval", "cоunt", "self"]
)
ATTRIBUTES = st.sampled_from(["append", "join", "format", "__class__", "gi_frame", "items", "encode", "x"])
ATOMS = st.one_of(
    NAMES,
    st.integers(-(10**20), 10**20).map(str),
    st.text(max_size=8).map(repr),
    st.sampled_from(["None", "True", "...", "1e400", "b''", "[]", "{}", "()", "'red'", "'thing:0'", "[0, 0, 9, 9]"]),
)


def expressions() -> st.SearchStrategy[str]:
    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = st.sampled_from(("+", "-", "*", "/", "//", "%", "**", "<<", "|", "@", "and", "in", "==", "<", ":="))
        return st.one_of(
            st.tuples(inner, operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(NAMES, st.lists(inner, max_size=3)).map(lambda t: f"{t[0]}({', '.join(t[1])})"),
            st.tuples(NAMES, NAMES, inner).map(lambda t: f"{t[0]}(image, {t[1]}={t[2]})"),
            st.tuples(inner, ATTRIBUTES).map(lambda t: f"{t[0]}.{t[1]}"),
            st.tuples(inner, ATTRIBUTES, inner).map(lambda t: f"{t[0]}.{t[1]}({t[2]})"),
            st.tuples(inner, inner).map(lambda t: f"{t[0]}[{t[1]}]"),
            st.tuples(inner, inner).map(lambda t: f"[{t[0]} for x in {t[1]}]"),
            st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
            inner.map(lambda e: f"(lambda x: {e})"),
            inner.map(lambda e: f"[{e}] * 100000"),
        )

    return st.recursive(ATOMS, larger, max_leaves=8)


STATEMENTS = (
    "x = {}",
    "y = {}",
    "{}",
    "if {}:\n        x = 1",
    "for x in {}:\n        y = x",
    "while {}:\n        x = 1",
    "import os",
    "x += {}",
    "del x",
    "return {}",
)


@st.composite
def programs(draw) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        lines.append("    " + draw(st.sampled_from(STATEMENTS)).format(draw(expressions())))
    return "\n".join(["def answer(image):", *lines, f"    return {draw(expressions())}"])


@pytest.fixture(scope="module")
def small():
    with Runner(limits=LIMITS, executor=MontyExecutor(workers=1)) as runner:
        yield runner


def names_in(source: str) -> set[str]:
    """Whatever a program can name: variables, functions, parameters, attributes, keywords."""
    fields = ("id", "name", "arg", "attr", "asname", "module")
    nodes = list(ast.walk(ast.parse(source)))
    return {str(value) for node in nodes for field in fields if (value := getattr(node, field, None)) is not None}


@FUZZ
@given(st.one_of(st.text(max_size=200), programs(), st.binary(max_size=100).map(lambda b: b.decode("latin-1"))))
def test_the_checker_passes_or_explains(tools, source):
    problems, program = [], None
    try:
        program = check(source, tools)
    except ProgramError as error:
        problems = error.problems
    assert all(one.line >= 1 and one.column >= 1 and one.message for one in problems)
    assert (program is None) == bool(problems)
    if program is None:
        return
    assert check(program.source, tools) == program  # what is run passes itself
    assert not [name for name in names_in(program.source) if name.startswith("_") or not name.isascii()]


@FUZZ
@given(programs())
def test_any_program_ends_with_a_clear_verdict(small, source):
    began = time.monotonic()
    outcome = small.run(source, PICTURE)
    assert time.monotonic() - began < 20
    assert (outcome.verdict is Verdict.RAN) == (outcome.reason is None)
    assert outcome.verdict in (Verdict.RAN, Verdict.REFUSED, Verdict.FAILED)
    if outcome.verdict is Verdict.RAN:
        assert plain(outcome.answer, LIMITS.output, "answer") == outcome.answer


@FUZZ
@given(programs())
def test_any_program_ends_without_the_checker(small, source):
    server = ToolServer(small.tools, View(PICTURE, small.backends), LIMITS)
    began = time.monotonic()
    done = small.executor.execute(source + "\nanswer(image)\n", {"image": "image:0"}, server.call, LIMITS)
    assert time.monotonic() - began < 20
    assert (done.answer is None) == (done.reason is not None)
    assert len(server.events) <= LIMITS.tool_calls


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.binary(max_size=3),
        st.sampled_from(["image:0", "thing:0", "red", "more", 10**4000, object(), len, 1j, range(3)]),
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@FUZZ
@given(
    NAMES, st.lists(VALUES, max_size=4), st.dictionaries(NAMES | st.sampled_from(["name", "view"]), VALUES, max_size=2)
)
def test_tools_take_any_arguments_or_say_why_not(tools, name, args, kwargs):
    server = ToolServer(tools, View(PICTURE, classical()), LIMITS)
    server.call("find", ("image:0", "red"), {})  # so that thing:0 is there
    stopped = None
    try:
        result = server.call(name, tuple(args), kwargs)
    except Stop as stop:
        stopped = stop
    if stopped is None:
        assert plain(result, LIMITS.output, "result") == result
        assert server.events[-1].tool == name
    else:
        assert stopped.message
        # A tool must not break on what the server lets through.
        assert "Error: " not in stopped.message, stopped.message


@FUZZ
@given(VALUES)
def test_only_plain_values_cross(value):
    copied, reason = None, Reason.OUTPUT
    try:
        copied = plain(value, 1000, "value")
    except Stop as stop:
        reason = stop.reason
    assert reason in (Reason.BAD_ARGUMENT, Reason.OUTPUT)

    def depth(item) -> int:
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        assert type(item) in (type(None), bool, int, float, str, list, dict)
        return 1 + max(map(depth, inner), default=0)

    assert depth(copied) <= MOST_DEPTH + 1
