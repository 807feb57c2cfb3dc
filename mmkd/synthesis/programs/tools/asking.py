"""Asking a back end in words. What it answers is data: text of a length, and nothing else."""

from __future__ import annotations

import json
import unicodedata

from mmkd.synthesis.programs.parts import Region
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.tools.base import tool
from mmkd.synthesis.programs.tools.view import View

MOST_ANSWER = 500  # characters


@tool(grounded=True, asks_model=True, needs="ask")
def query(view: View, image: Region, question: str) -> str:
    """A short answer to a question about the image or thing."""
    assert view.backends.ask is not None
    return cleaned(view.backends.ask(view.pixels(image), question), "query")


@tool(grounded=True, asks_model=True, needs="ask")
def verify_property(view: View, thing: Region, property: str) -> bool:
    """Whether the thing is so, e.g. "red"."""
    assert view.backends.ask is not None
    answer = cleaned(view.backends.ask(view.pixels(thing), f"is it {property}? answer yes or no."), "verify_property")
    word = answer.lower().strip(" .!\"'").split(" ")[0].strip(",.")
    if word not in ("yes", "no"):
        raise Stop(Reason.TOOL_ERROR, f"verify_property: the model answered {answer[:40]!r}, neither yes nor no.")
    return word == "yes"


@tool(grounded=True, needs="read")
def ocr(view: View, image: Region) -> list[str]:
    """The lines of text in the image, from top to bottom."""
    assert view.backends.read is not None
    return [cleaned(line, "ocr") for line in view.backends.read(view.pixels(image))[:100]]


@tool(asks_model=True, needs="know")
def knowledge(view: View, question: str) -> str:
    """A short answer from general knowledge, without the image."""
    assert view.backends.know is not None
    return cleaned(view.backends.know(quoted(question)), "knowledge")


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
