"""Text of any origin: what models answer, what stands in pictures, what programs make of both."""

from __future__ import annotations

import json
import unicodedata

from mmkd.synthesis.programs.reasons import Reason, Stop

MOST_ANSWER = 500  # characters


def cleaned(text: object, name: str) -> str:
    """One line without control or direction characters, at most MOST_ANSWER long. Raises: Stop for what is no text."""
    if not isinstance(text, str):
        raise Stop(Reason.TOOL_ERROR, f"{name}: the back end gave a {type(text).__name__}, not text.")
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text[: 2 * MOST_ANSWER])
    shown = "".join(c for c in shown if unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn"))
    return " ".join(shown.split())[:MOST_ANSWER]


def quoted(text: str) -> str:
    """Text of any origin for use inside a prompt: one line in double quotes that it cannot get out of."""
    return json.dumps(cleaned(text, "question"), ensure_ascii=False)
