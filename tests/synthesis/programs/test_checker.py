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
        (HEAD + "return len(image, __a=1)", (2, 23), Reason.NOT_ALLOWED, "the name __a starts with _"),
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
        (HEAD + "return 0x" + "f" * 7000, (2, 12), Reason.TOO_LARGE, "a whole number of 28,000 bits; at most 1,024."),
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
    HEAD + "n = count(image, 'red')\n    return n",
    HEAD + "unused = 1\n    again = unused\n    exists(image, 'blue')\n    return count(image, 'red')",
    HEAD + "name = 'red'\n    here = image\n    n = count(here, name)\n    m = n\n    return m",
]
OTHER = [
    HEAD + "return count(image, 'blue')",
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # A helper's parameter and another function's variable of its name are two things.
        (
            "def helper(img):\n    return count(img, 'red')\n" + HEAD + "count = helper(image)\n    return count",
            "def helper(img):\n    return exists(img, 'red')\n" + HEAD + "exists = helper(image)\n    return exists",
        ),
        (
            "def f(a, b):\n    return a - b\n" + HEAD + "return f(a=count(image, 'red'), b=1)",
            "def f(a, b):\n    return a - b\n" + HEAD + "return f(b=count(image, 'red'), a=1)",
        ),
        # What was named before it changed is not what it is afterwards.
        (
            HEAD + "kept = [1]\n    n = len(kept)\n    kept.append(2)\n    return count(image, 'red') + n",
            HEAD + "kept = [1]\n    kept.append(2)\n    return count(image, 'red') + len(kept)",
        ),
        (
            HEAD + "a = count(image, 'red')\n    b = a\n    a = 5\n    return a + b",
            HEAD + "a = count(image, 'red')\n    a = 5\n    return a + a",
        ),
        (
            HEAD
            + "x = 0\n    for i in find(image, 'red'):\n        if exists(i, 'red'):\n            x = i\n    return x",
            HEAD
            + "x = 0\n    for i in find(image, 'red'):\n        if exists(i, 'red'):\n            x = 1\n    return x",
        ),
        (
            HEAD + "n = 3\n    if exists(image, 'red'):\n        m = n\n    else:\n        m = 2\n    return m",
            HEAD + "n = 3\n    if exists(image, 'red'):\n        m = 2\n    else:\n        m = n\n    return m",
        ),
    ],
)
def test_programs_that_do_something_else_are_others(tools, one, other):
    assert check(one, tools).key != check(other, tools).key


@pytest.mark.parametrize(
    ("lines", "fed"),
    [
        ("return count(image, 'red')", True),
        ("if count(image, 'red') > 0:\n        return 'yes'\n    return 'no'", True),
        ("return 'yes' if exists(image, 'red') else 'no'", True),
        ("n = 0\n    for one in find(image, 'red'):\n        n += 1\n    return n", True),
        ("found = []\n    for one in find(image, 'red'):\n        found.append(1)\n    return len(found)", True),
        ("a = []\n    b = a\n    b.append(count(image, 'red'))\n    return a", True),
        ("a = {}\n    b = [a]\n    for one in b:\n        one['x'] = count(image, 'red')\n    return a['x']", True),
        (
            "n = 0\n    for i in range(9):\n        if i == count(image, 'red'):\n            break\n        n = i\n"
            "    return n",
            True,
        ),
        ("return [one for one in [1, 2] if exists(image, 'red')]", True),
        ("return largest(find(image, 'red'))", True),
        ("return distance(find(image, 'red')[0], image)", True),
        ("names = ['red']\n    return [count(image, one) for one in names]", True),
        ("x = find(image, 'thing')[0]\n    return 'yes'", False),
        ("x = find(image, 'thing')[0]\n    y = 1\n    return y", False),
        ("if exists(image, 'red'):\n        return 'yes'\n    return 'yes'", False),
        ("if exists(image, 'red'):\n        return True\n    return 'yes'", False),
        ("return 'yes' if exists(image, 'red') else 'yes'", False),
        ("count(image, 'red')\n    return compare(2, 'more', 1)", False),
        ("n = count(image, 'red')\n    return crop([0, 0, 9, 9])", False),
        ("if 1 > 2:\n        return count(image, 'red') * 0\n    return 1", True),
    ],
)  # fmt: skip
def test_a_program_knows_whether_what_it_sees_can_change_its_answer(tools, lines, fed):
    assert check(HEAD + lines, tools).fed is fed


@pytest.mark.parametrize(
    ("helper", "call", "fed"),
    [
        ("def f(x):\n    return count(x, 'red')\n", "return f(image)", True),
        ("def f(x):\n    return x + 1\n", "return f(count(image, 'red'))", True),
        ("def f(x):\n    return x + 1\n", "return f(x=count(image, 'red'))", True),
        ("def f(x, y):\n    x.append(y)\n", "a = []\n    f(a, count(image, 'red'))\n    return a", True),
        ("def f(x):\n    if x:\n        return 1\n    return 2\n", "return f(exists(image, 'red'))", True),
        ("def f(x):\n    return 'yes'\n", "return f(exists(image, 'red'))", False),
        ("def f(x):\n    return count(x, 'red')\n", "n = f(image)\n    return 1", False),
    ],
)
def test_what_helpers_see_is_known_too(tools, helper, call, fed):
    assert check(helper + HEAD + call, tools).fed is fed


def test_a_program_as_long_as_may_be_is_read_too(tools):
    lines = ["a0 = count(image, 'red')", *(f"a{n} = abs(a{n - 1})" for n in range(1, 240))]
    assert check(HEAD + "\n    ".join([*lines, "return a239"]), tools).fed
    assert not check(HEAD + "\n    ".join([*lines, "return 1"]), tools).fed


def test_a_program_knows_the_tools_it_calls(tools):
    program = check("def count_all(i):\n    return count(i, 'red')\n" + HEAD + "return count_all(image) + 1", tools)
    assert program.tools == ("count",)
