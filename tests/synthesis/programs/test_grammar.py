"""The grammar that writers are held to: all it admits is Python that the checker takes, and it admits what we write."""

from __future__ import annotations

import ast
import os

import pytest

from mmkd.synthesis.programs import grammar
from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.backends.classical import ClassicalAsker, ClassicalDetector
from mmkd.synthesis.programs.checker import ProgramError, check
from mmkd.synthesis.programs.grammar import LETTERS, gbnf
from mmkd.synthesis.programs.making.examples import examples
from mmkd.synthesis.programs.reasons import Reason
from mmkd.synthesis.programs.rules import NODES
from mmkd.synthesis.programs.tools.registry import Toolset, installed
from tests.synthesis.programs.conftest import program_for
from tests.synthesis.programs.gbnf_texts import Texts

SEEDS = range(int(os.environ.get("MMKD_FUZZ", "150")))
BOUND = ["image", "things", "thing", "n"]


@pytest.fixture(scope="module")
def every_tool() -> Toolset:
    detector = ClassicalDetector()
    asker = ClassicalAsker(detector)
    backends = Backends(detector, asker, read=lambda image: [], depth=lambda image: image, know=lambda question: "")
    tools = Toolset(backends)
    assert set(tools) == set(installed())
    return tools


@pytest.fixture(scope="module")
def admits(every_tool):
    """Whether llguidance, which holds in-process writers to the grammar, takes a text for one of it."""
    llguidance = pytest.importorskip("llguidance")
    from llguidance.gbnf_to_lark import any_to_lark

    tokens = llguidance.LLTokenizer("byte")

    def admitted(text: str, tools: Toolset = every_tool) -> bool:
        grammar = llguidance.LLMatcher.grammar_from_lark(any_to_lark(gbnf(tools)))
        matcher = llguidance.LLMatcher(tokens, grammar)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokens.tokenize_str(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return admitted


def reasons(source: str, tools: Toolset) -> set[Reason]:
    try:
        check(source, tools)
    except ProgramError as error:
        return {one.reason for one in error.problems}
    return set()


def test_all_that_it_admits_is_python_of_known_tools(every_tool):
    texts, reached = Texts(gbnf(every_tool)), set()
    for seed in SEEDS:
        source = texts(seed)
        reached |= {type(node) for node in ast.walk(ast.parse(source))}
        # Names are drawn letter by letter, and no grammar knows which are defined.
        assert reasons(source, every_tool) <= {Reason.UNKNOWN_NAME, Reason.TOO_LARGE}, source
    assert set(NODES) - reached <= {ast.AnnAssign}


def test_with_names_that_are_defined_nearly_all_pass_the_check(every_tool):
    setup = "".join(f"    {name} = find(image, 'red')\n" for name in BOUND[1:])
    texts, passed = Texts(gbnf(every_tool), {"NAME": BOUND}), 0
    for seed in SEEDS:
        head, _, body = texts(seed).partition("\n")
        found = reasons(f"{head}\n{setup}{body}", every_tool)
        assert found <= {Reason.TOO_LARGE}, body
        passed += not found
    assert passed > 0.95 * len(SEEDS)


def test_what_it_admits_the_interpreter_takes(every_tool, runner):
    texts = Texts(gbnf(every_tool), {"NAME": BOUND})
    for seed in range(60):
        done = runner.executor.execute(
            texts(seed) + "\nanswer(image)\n", {"image": "image:0"}, lambda *call: None, runner.limits
        )
        assert done.reason is not Reason.NOT_PYTHON, (texts(seed), done.message)


def test_both_readings_of_it_agree(every_tool, admits):
    texts = Texts(gbnf(every_tool))
    assert all(admits(texts(seed)) for seed in range(40))


def test_it_admits_every_example_of_the_prompts(admits):
    assert [one.program for one in examples()[1] if not admits(one.program)] == []


def test_it_admits_right_programs_for_scenes(admits, make_scene):
    from mmkd.data.scenes import records

    questions = {
        turn.text for record in records("train", 4, 0, questions=5) for turn in record.turns if turn.role == "user"
    }
    assert [question for question in questions if not admits(program_for(question).replace("'", '"'))] == []


@pytest.mark.parametrize(
    "source",
    [
        "return nothing(image)",
        "return count(image)",
        "return count(image, 'red', 'blue')",
        "return count(name='red', image=image, name='red')",
        "return count('red', 'red')",
        "return find(3, 'red')",
        "return image.size",
        "return image.format()",
        "import os",
        "while True:\n        return 1",
        "return (lambda x: x)(1)",
        "return 1.count(1)",
        "return 01",
        "return _x",
        "count = 3\n    return count",
        "class_ = 3\n    class = 4\n    return 1",
        "return f'{image!r}'",
        "return 'red",
        "return 1\n    return 2",
        "pass",
        "break",
        "if 1:\n        break\n    return 1",
        "for n in [1]:\n    return n",
        "return 1\ndef other(image):\n    return 1",
    ],
)
def test_it_does_not_admit(admits, source):
    assert not admits(f"def answer(image):\n    {source}")


def test_a_tool_that_is_not_offered_cannot_be_written(admits):
    few = Toolset(Backends(ClassicalDetector()), ["count"])
    source = "def answer(image):\n    return {}(image, 'red')"
    assert admits(source.format("count"), few)
    assert not admits(source.format("find"), few)
    assert admits(source.format("find"))


@pytest.mark.parametrize(
    ("construct", "source"),
    [
        (ast.For, "for n in [1]:\n        pass\n    return 1"),
        (ast.Mod, "return 1 % 1"),
        (ast.IfExp, "return 1 if 2 else 3"),
        (ast.JoinedStr, 'return f"{image}"'),
        (ast.IsNot, "return image is not None"),
    ],
)
def test_a_construct_that_the_checker_drops_cannot_be_written(admits, monkeypatch, construct, source):
    assert admits(f"def answer(image):\n    {source}")
    monkeypatch.setattr(grammar, "NODES", [one for one in NODES if one is not construct])
    assert not admits(f"def answer(image):\n    {source}")
    assert admits("def answer(image):\n    return count(image, 'red')")


def test_every_letter_of_its_texts_is_one_that_the_checker_takes(every_tool):
    for first, last in zip(LETTERS[::3], LETTERS[2::3], strict=True):
        text = "".join(map(chr, range(ord(first), ord(last) + 1)))
        for start in range(0, len(text), 6000):
            check(f'def answer(image):\n    return "{text[start : start + 6000]}"', every_tool)
