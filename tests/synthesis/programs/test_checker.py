"""What the checker says, where, and which programs it holds for the same."""

from __future__ import annotations

import pytest

from mmkd.synthesis.programs.checker import ProgramError, check
from mmkd.synthesis.programs.reasons import Reason

HEAD = "def answer(image):\n    "


@pytest.mark.parametrize(
    ("source", "place", "reason", "words"),
    [
        (HEAD + "return cuont(image, 'x')", (2, 12), Reason.UNKNOWN_NAME, "cuont is not defined. Did you mean count?"),
        (HEAD + "return imge", (2, 12), Reason.UNKNOWN_NAME, "imge is not defined. Did you mean image?"),
        (HEAD + "return image.size", (2, 12), Reason.NOT_ALLOWED, ".size is not allowed"),
        (HEAD + "return 'a'.lowr()", (2, 12), Reason.NOT_ALLOWED, "method .lowr is not allowed. Did you mean lower?"),
        (HEAD + "return count(image)", (2, 12), Reason.WRONG_ARGUMENTS, "name is missing; it is count(image, name)"),
        (
            HEAD + "return count(image, nme='x')",
            (2, 25),
            Reason.WRONG_ARGUMENTS,
            "nme is no parameter. Did you mean name?",
        ),
        (HEAD + "return find", (2, 12), Reason.NOT_ALLOWED, "has to be called: find(..)"),
        (HEAD + "return 1 |", (2, 15), Reason.NOT_PYTHON, "invalid syntax"),
        (HEAD + "x = 1\n    return 1 | 2", (3, 12), Reason.NOT_ALLOWED, "| is not allowed"),
        (HEAD + "import os\n    return 1", (2, 5), Reason.NOT_ALLOWED, "import is not allowed"),
        (HEAD + "count = 1\n    return count(image, 'x')", (3, 12), Reason.NOT_ALLOWED, "count is a variable here"),
        (
            "def anwser(image):\n    return 1",
            (1, 1),
            Reason.NOT_ALLOWED,
            "answer(image) is needed. Did you mean anwser?",
        ),
        ("x = 1\ndef answer(image):\n    return 1", (1, 1), Reason.NOT_ALLOWED, "only functions may stand at the top"),
        (HEAD + "return 1\n" + "#" * 8000, (1, 1), Reason.TOO_LARGE, "characters; at most 8,000"),
    ],
)
def test_an_error_says_where_what_and_what_instead(tools, source, place, reason, words):
    with pytest.raises(ProgramError) as raised:
        check(source, tools)
    first = raised.value.problems[0]
    matching = [one for one in raised.value.problems if words in one.message]
    assert matching, raised.value
    assert (matching[0].line, matching[0].column, matching[0].reason) == (*place, reason)
    assert str(raised.value).startswith(f"line {first.line}, column {first.column}: ")


def test_all_problems_are_told_at_once_in_order(tools):
    with pytest.raises(ProgramError) as raised:
        check(HEAD + "a = cuont(image, 'x')\n    b = image.size\n    return find(image)", tools)
    assert [one.line for one in raised.value.problems] == [2, 3, 4]


@pytest.mark.parametrize(
    "source",
    [
        HEAD + "return count(image, 'red circle')",
        HEAD + "total = 0\n    for one in find(image, 'circle'):\n        total += 1\n    return total",
        HEAD + "count = 0\n    for one in find(image, 'circle'):\n        count += 1\n    return count",
        HEAD + "names = {'a': 1}\n    return [f'{k} {v}' for k, v in sorted(names.items())]",
        HEAD + "a, b = 1, 2\n    return a if a > b else 'no'.upper()",
        "def helper(image, name):\n    return count(image, name=name)\n" + HEAD + "return helper(image, 'red')",
        "def answer(picture: Image) -> int:\n    '''Doc.'''\n    n: int = count(picture, 'red')\n    return n",
        HEAD + "return max([1, 2], key=abs)",
    ],
)
def test_plain_programs_pass_and_run(tools, runner, make_scene, source):
    program = check(source, tools)
    assert "Image" not in program.source
    assert runner.run(program, make_scene("train", 0, 0).image()).reason is None


SAME = [
    HEAD + "return count(image, 'red')",
    HEAD + "return count( image,'red' )  # a comment",
    "def answer(picture):\n    '''Doc.'''\n    return count(picture, 'red')",
    'def answer(x: str) -> int:\n    return count(x, "red")',
]
OTHER = [
    HEAD + "return count(image, 'blue')",
    HEAD + "n = count(image, 'red')\n    return n",
    HEAD + "return len(find(image, 'red'))",
    HEAD + "return count(image, name='red')",
]


def test_programs_are_the_same_but_for_names_layout_and_comments(tools):
    assert len({check(source, tools).key for source in SAME}) == 1
    assert len({check(source, tools).key for source in [SAME[0], *OTHER]}) == 1 + len(OTHER)


def test_swapped_names_make_another_program(tools):
    one, other = (
        check(HEAD + f"a = count(image, 'red')\n    b = count(image, 'blue')\n    return {order}", tools)
        for order in ("a - b", "b - a")
    )
    assert one.key != other.key


def test_a_program_knows_the_tools_it_calls(tools):
    program = check("def count_all(i):\n    return count(i, 'red')\n" + HEAD + "return count_all(image) + 1", tools)
    assert program.tools == ("count",)
