"""Numbers that a text names, in digits or in words."""

from __future__ import annotations

import re
import unicodedata

# fmt: off
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
)
_OTHERS = {
    "half": 0.5, "halves": 0.5, "quarter": 0.25, "once": 1, "twice": 2, "thrice": 3, "double": 2, "triple": 3,
    "pair": 2, "pairs": 2, "couple": 2, "dozen": 12, "dozens": 12, "score": 20,
}
# fmt: on
_LARGE = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}

NUMBER_WORDS = {word: number for number, word in enumerate(NUMBERS)}
_WORDS: dict[str, float] = {
    **NUMBER_WORDS,
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
    **{word: number for number, word in enumerate(_ORDINALS, 1)},
    **{f"{word[:-1]}ieth": 10 * number for number, word in enumerate(_TENS, 2)},
    **{word + end: number for word, number in _LARGE.items() for end in ("", "s", "th")},
    **_OTHERS,
}
_SMALL = {word: number for word, number in (*NUMBER_WORDS.items(), *zip(_ORDINALS, range(1, 20))) if 0 < number < 10}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})[\s-]+({'|'.join(_SMALL)})\b")
_WORD = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"(?:(?<!\w)-)?\d+(?:\.\d+)?")


def numbers_in(text: str) -> frozenset[float]:
    """Every run of digits, also of "5px" and "3rd"; signs that are numbers (a fraction, a Roman or Chinese numeral);
    and words: cardinals and ordinals to ninety-nine, hundred and larger ones each for itself, dozen, half and the like.
    """
    found = {float(one) for one in _DIGITS.findall(text)}
    text = _DIGITS.sub(" ", text).lower()
    found |= {unicodedata.numeric(sign) for sign in text if not sign.isascii() and unicodedata.numeric(sign, None)}
    found |= {_WORDS[tens] + _SMALL[ones] for tens, ones in _COMPOUND.findall(text)}
    words = _WORD.findall(_COMPOUND.sub(" ", text))
    return frozenset(found | {float(_WORDS[word]) for word in words if word in _WORDS})
