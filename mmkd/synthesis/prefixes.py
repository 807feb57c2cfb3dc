"""What prompts of a batch begin with alike: instructions, rubrics and examples are read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Prompt = Sequence[int]  # token ids


def prefixes(prompts: Sequence[Prompt], only_equal: bool = False) -> list[int] | None:
    """How many first tokens of each prompt to read apart, and once for all prompts that begin with the same.

    Of prompts in alphabetical order those stand together that have at least n tokens with a neighbour in common; n is
    what leaves the fewest tokens to read, padding counted. Each prompt keeps its last token, whose logits are those of
    the answer's first.

    Args:
        only_equal: only prompts that are the same stand together, and all are read but for their last token: no row of
            [padding, first tokens, padding, rest] has padding within it.

    Returns: one or more for each prompt; None where nothing is saved, or where a prompt is a single token.
    """
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    alike = [_in_common(prompts[one], prompts[other], only_equal) for one, other in pairwise(order)]
    longest = max(map(len, prompts))
    best, least = None, len(prompts) * longest
    for n in {*alike} - {0}:
        lengths = _lengths(prompts, order, alike, n, longest if only_equal else 0)
        read = _read(prompts, lengths)
        if min(lengths) and read < least:
            best, least = lengths, read
    return best


def _in_common(one: Prompt, other: Prompt, only_equal: bool) -> int:
    """First tokens that are the same, without the last of either."""
    if only_equal and one != other:
        return 0
    most = min(len(one), len(other)) - 1
    return next((place for place in range(most) if one[place] != other[place]), most)


def _lengths(prompts: Sequence[Prompt], order: Sequence[int], alike: Sequence[int], n: int, alone: int) -> list[int]:
    """A prompt that stands alone is read `alone` tokens far, or as far as the others, which costs no more."""
    groups = [[0]]
    for place, common in enumerate(alike, start=1):
        if common >= n:
            groups[-1].append(place)
        else:
            groups.append([place])
    shared = [min((alike[place] for place in group[:-1]), default=0) for group in groups]
    lengths = [0] * len(prompts)
    for group, length in zip(groups, shared):
        for row in (order[place] for place in group):
            lengths[row] = length or min(max(*shared, alone), len(prompts[row]) - 1)
    return lengths


def _read(prompts: Sequence[Prompt], lengths: Sequence[int]) -> int:
    heads = {tuple(prompt[:length]) for prompt, length in zip(prompts, lengths)}
    rest = max(len(prompt) - length for prompt, length in zip(prompts, lengths))
    return len(heads) * max(map(len, heads)) + len(prompts) * rest
