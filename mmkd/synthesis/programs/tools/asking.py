"""Asking a back end in words. What it answers is data: text of a length, and nothing else."""

from __future__ import annotations

from mmkd.synthesis.programs.parts import Region
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.tools.base import tool
from mmkd.synthesis.programs.tools.view import View
from mmkd.synthesis.programs.untrusted import cleaned, quoted


@tool(grounded=True, asks_model=True, needs="ask")
def query(view: View, image: Region, question: str) -> str:
    """A short answer to a question about the image or thing."""
    assert view.backends.ask is not None
    return cleaned(view.backends.ask(view.pixels(image), question), "query")


@tool(version=2, grounded=True, asks_model=True, needs="ask")
def verify_property(view: View, thing: Region, property: str) -> bool:
    """Whether the thing is so, e.g. "red"."""
    assert view.backends.ask is not None
    # The property may be text that stood in the picture.
    question = f"is it {quoted(property)}? answer yes or no."
    answer = cleaned(view.backends.ask(view.pixels(thing), question), "verify_property")
    word = answer.lower().strip(" .!\"'").split(" ")[0].strip(",.")
    if word not in ("yes", "no"):
        raise Stop(Reason.UNCLEAR, f"verify_property: the model answered {answer[:40]!r}, neither yes nor no.")
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
