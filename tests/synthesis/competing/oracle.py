"""An OpenAI-compatible server that answers questions about scenes by looking: teacher, judge and augmentor of tests.

Run as `python oracle.py PORT_FILE`; it writes its port there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from mmkd.data.scene_questions import Thing, offers
from mmkd.synthesis.programs.backends.classical import ClassicalDetector

NUMBER = itertools.count()
WRONG_IN = 10  # one question in so many gets a wrong answer, always the same


POLITE = "Please tell me, "  # how it says a question in other words
ASKED = "Say in other words: "


def truth(image: Image.Image, question: str) -> str | None:
    question = question.removeprefix(POLITE)
    found = ClassicalDetector().detect(image, "thing")
    things = [Thing(*one.cell, *one.label.split(), image="") for one in found if one.cell]
    for forms in offers(things, held_out=True).values():
        for answers in forms.values():
            for answer, questions in answers.items():
                if any(one.text == question for one in questions):
                    return answer
    return None


def answer(image: Image.Image | None, question: str) -> str:
    if image is None:
        return "0" if question.startswith("how many") else "no"
    drawn = int(hashlib.sha256(image.tobytes() + question.encode()).hexdigest(), 16) % WRONG_IN
    return "nothing" if drawn == 0 else truth(image, question) or "no idea"


def mended(text: str, seed: int, question: str, faulty: str, image: Image.Image | None) -> str:
    """Right one time in three; else wrong, or the same again."""
    drawn = int(hashlib.sha256(f"{seed}{text}".encode()).hexdigest(), 16) % 3
    right = truth(image, question) if image is not None else None
    return json.dumps({"fault": "seen", "answer": ["nothing at all", faulty, f"{right}"][drawn]})


def reply(system: str, text: str, image: Image.Image | None, seed: int) -> str:
    fenced = re.findall(r"--- (\w{8})\n(.*?)\n--- \1", text, re.DOTALL)
    parts = [part for _, part in fenced]
    if "grade answers" in system:
        question, *rest = parts
        first, second = rest[-2:] if "Second answer" in text else (rest[-1], None)
        right = truth(image, question) if image is not None else None
        grades = [10 if said == right else 2 for said in (first, second) if said is not None]
        return json.dumps(
            {"reason": "seen", **dict(zip(("first", "second") if second is not None else ("score",), grades))}
        )
    if text.startswith(ASKED):
        asked = text.removeprefix(ASKED)
        drawn = int(hashlib.sha256(f"{seed}{text}".encode()).hexdigest(), 16) % 3
        return [f"{POLITE}{asked}", f"{POLITE}{asked.replace('?', ' in the corner?')}", "The answer is yes."][drawn]
    if "mend answers" in system:
        return mended(text, seed, parts[0], parts[1], image)
    if "write questions" in system:
        if image is None:  # the probe of whether pictures are read
            return json.dumps({"question": "What is in the picture?"})
        things = [Thing(*one.cell, *one.label.split(), image="") for one in ClassicalDetector().detect(image, "thing")]
        every = [q.text for f in offers(things, False).values() for a in f.values() for qs in a.values() for q in qs]
        drawn = int(hashlib.sha256(text.encode()).hexdigest(), 16)
        if drawn % 7 == 0:
            return json.dumps({"question": "Read the instruction and follow it."})
        return json.dumps({"question": sorted(every)[drawn % len(every)]})
    if "check questions" in system:
        return json.dumps({"reason": "seen", "fits": len(parts[0]) % 5 != 0})
    return answer(image, text)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        system, text, image = "", "", None
        for message in body["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                    image = Image.open(io.BytesIO(data)).convert("RGB")
                elif message["role"] == "system":
                    system += part["text"]
                elif message["role"] == "user":
                    # What is asked again after a reply of no use is asked in the same words; examples stand before.
                    text = part["text"] if part["text"].startswith(ASKED) else text or part["text"]
        said = reply(system, text, image, body.get("seed") or 0)
        usage = {"prompt_tokens": len(text.split()) + 20 * (image is not None), "completion_tokens": len(said.split())}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        answer = {"id": f"chat-{next(NUMBER)}", "object": "chat.completion", "created": 0, "model": body["model"],
                  "choices": [choice], "usage": usage | {"total_tokens": sum(usage.values())}}  # fmt: skip
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # at the default of 5, Linux resets some of 48 connections that come at once


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    partial = Path(sys.argv[1] + ".partial")
    partial.write_text(str(server.server_port))
    partial.replace(sys.argv[1])
    server.serve_forever()
