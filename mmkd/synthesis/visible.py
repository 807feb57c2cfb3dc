"""Text of any origin, made safe to show."""

from __future__ import annotations

import unicodedata

from rich.markup import escape


def visible(text: str) -> str:
    """One line in which control and direction characters are written out, so that a terminal does not obey them."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in hidden else c for c in text)


def in_table(text: str) -> str:
    """As `visible`, for a table of the terminal, which would take "[/b]" for markup."""
    return escape(visible(text))
