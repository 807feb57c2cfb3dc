"""What prompts begin with alike: the longest saving, nothing read wrongly, nothing read in vain."""

from __future__ import annotations

import random

from mmkd.synthesis.prefixes import prefixes


def read(prompts: list[list[int]], lengths: list[int]) -> int:
    heads = {tuple(prompt[:length]) for prompt, length in zip(prompts, lengths)}
    rest = max(len(prompt) - length for prompt, length in zip(prompts, lengths))
    return len(heads) * max(len(head) for head in heads) + len(prompts) * rest


def test_an_instruction_is_read_once_and_each_question_by_itself():
    instruction = list(range(10, 40))
    prompts = [[*instruction, n, n + 1] for n in range(5)]
    assert prefixes(prompts) == [30] * 5
    assert prefixes(prompts, only_equal=True) is None


def test_two_instructions_and_one_prompt_like_no_other():
    first, second, other = list(range(10, 40)), list(range(50, 75)), list(range(80, 120))
    prompts = [[*first, 1], [*second, 2], [*first, 3], other, [*second, 4, 5]]
    assert prefixes(prompts) == [30, 25, 30, 30, 25]


def test_equal_prompts_keep_their_last_token():
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert prefixes(prompts) == prefixes(prompts, only_equal=True) == [3, 3, 3, 3]


def test_where_only_equal_prompts_stand_together_no_row_is_padded_within():
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 9, 9], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6]]
    assert prefixes(prompts, only_equal=True) == [3, 6, 3, 3, 1]


def test_nothing_to_save():
    assert prefixes([[1, 2, 3]]) is None
    assert prefixes([[1, 2, 3], [4, 5, 6]]) is None
    assert prefixes([[1], [1], [1]]) is None
    assert prefixes([[1, 2], [1, 2, 3], [7]]) is None  # a prompt of one token has nothing but its last


def test_of_any_prompts_no_more_is_read_than_they_hold_and_never_the_last_token():
    rng, saved = random.Random(0), 0
    for _ in range(500):
        prompts = [[rng.randrange(2) for _ in range(rng.randrange(1, 9))] for _ in range(rng.randrange(1, 9))]
        for only_equal in (False, True):
            lengths = prefixes(prompts, only_equal)
            if lengths is not None:
                saved += 1
                assert all(1 <= length < len(prompt) for length, prompt in zip(lengths, prompts, strict=True))
                assert read(prompts, lengths) < len(prompts) * max(map(len, prompts))
    assert saved > 100
