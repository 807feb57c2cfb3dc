"""What stands in for a big model's words in the tests: versions and verdicts for what the prompt shows, some wrong.

The same for the same request, as a server at temperature 0 is; the wire, the server and the faults are real.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def said(body: dict[str, Any]) -> str:
    """The assistant's text for a chat completion's body."""
    text = _text(body)
    draw = int(hashlib.sha256((text + str(body.get("seed"))).encode()).hexdigest(), 16)
    if "Found in the image" in text:
        return json.dumps(_version(text, draw))
    if "Grade the difficulty" in text:
        return json.dumps(_verdict(text))
    return ["a dog", "0"][draw % 2]


def _text(body: dict[str, Any]) -> str:
    parts = []
    for message in body["messages"]:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [one["text"] for one in content if one["type"] == "text"]
    return "\n".join(parts)


def _version(text: str, draw: int) -> dict[str, Any]:
    found = [(label, json.loads(box)) for label, box in re.findall(r"^(\w+ \w+): (\[.*\])$", text, re.MULTILINE)]
    label = found[draw % len(found)][0].split()[0] + " shape"
    boxes = [box for one, box in found if one.startswith(label.split()[0])]
    if draw % 5 == 0:
        boxes = boxes[1:]  # one overlooked: the detector knows better
    grounding = {
        "function": "grounding",
        "argument": label,
        "boxes": boxes,
        "result": "",
        "description": f"find {label}s",
    }
    steps, skills, form = [grounding], ["grounding"], "open question"
    if "more reasoning" in text:
        skills = ["grounding", "calculating"]
        steps.append(
            {"function": "calculate", "argument": "#1 * 2", "boxes": [], "result": "", "description": "double"}
        )
    if "another task form" in text:
        form = "fill-in"
    else:
        form = re.search(r'"form": "([a-z -]+)";', text)[1]
    answer = str(len(boxes) * (2 if len(steps) > 1 else 1))
    question = f"variant {draw % 1000}: what is {'twice ' * (len(steps) > 1)}the number of {label}s?"
    return {
        "objects": [label], "skills": skills, "steps": steps, "form": form, "question": question, "answer": answer
    }  # fmt: skip


def _verdict(text: str) -> dict[str, Any]:
    """Prefers the longer question, in either order."""
    first, second = re.findall(r"^Question: (.*)$", text, re.MULTILINE)
    better = "neither" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
    points = {"first_difficulty": min(10, 1 + len(first) // 12), "second_difficulty": min(10, 1 + len(second) // 12)}
    return {"reason": "length", **points, "first_right": True, "second_right": True, "better": better}
