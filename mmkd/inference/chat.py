"""A conversation about images in the terminal, or through a pipe: a question a line, answers as they are made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from transformers import TextStreamer

from mmkd.data.images import open_image, read_image
from mmkd.errors import DataError
from mmkd.inference.reader import Reader

HELP = "/image PATH adds an image · /clear starts over, without images · /quit ends"
Write = Callable[[str], None]


class Conversation:
    """Images and turns so far. Every image stands before the text, so one may be added at any time."""

    def __init__(self, reader: Reader, answer_tokens: int = 256):
        self.reader, self.answer_tokens = reader, answer_tokens
        self.images: list[bytes] = []
        self.turns: list[dict[str, Any]] = []

    def add_image(self, path: Path) -> str:
        """Read an image and say what it became. Raises DataError where it is missing, broken or too large."""
        data = read_image(str(path))
        began, reader = time.perf_counter(), self.reader
        try:
            if reader.tokens is None:
                width, height = open_image(data).size
                said = f"{width} x {height} pixels"
            else:
                cache = reader.compressed(data)
                milliseconds = 1000 * (time.perf_counter() - began)
                said = f"{int(cache.image_tokens)} vision tokens -> {cache.tokens}, {milliseconds:.0f} ms"
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        self.images.append(data)
        return f"{path.name}: {said}"

    def ask(self, question: str, write: Write) -> str:
        """Answer, writing the text as it is made. Raises DataError where the conversation has become too long."""
        loaded = self.reader.loaded
        parts = [{"type": "image"}] * len(self.images)
        turns = [*self.turns, {"role": "user", "content": [{"type": "text", "text": question}]}]
        first = {**turns[0], "content": [*parts, *turns[0]["content"]]}
        inputs = self.reader.inputs([first, *turns[1:]], self.images)
        sequence = loaded.model.generate(
            **inputs,
            **loaded.generation,
            do_sample=False,
            max_new_tokens=min(self.answer_tokens, self.reader.room(inputs)),
            streamer=Streamer(loaded.processor.tokenizer, write),
        )[0]
        new = sequence[inputs["input_ids"].shape[1] :]
        answer = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        self.turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return answer

    def clear(self) -> None:
        self.images, self.turns = [], []


class Streamer(TextStreamer):
    """Hands finished pieces of text on, without the space that many templates put before an answer."""

    def __init__(self, tokenizer: Any, write: Write):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.begun = write, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        self.write(text + "\n" * stream_end)


def chat(model: str, images: list[Path], tokens: int | Literal["full"] | None = None, answer_tokens: int = 256) -> None:
    """Talk until /quit, the end of the input, or Ctrl-D. Answers go to stdout, everything else to stderr.

    Raises: ConfigError for a model that cannot be loaded, DataError for an image that cannot be read.
    """
    conversation = Conversation(Reader.open(model, tokens), answer_tokens)
    for path in images:
        _note(conversation.add_image(path))
    if sys.stdin.isatty():
        _note(HELP)
    for line in _lines():
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return
        try:
            _obey(conversation, word, rest.strip(), line)
        except DataError as error:
            _note(str(error))
        except KeyboardInterrupt:
            _write("\n")  # Ctrl-C stops an answer, not the conversation
            _note("stopped; the question is forgotten.")


def _obey(conversation: Conversation, word: str, rest: str, line: str) -> None:
    if not word:
        return
    if word == "/image" and rest:
        _note(conversation.add_image(Path(rest).expanduser()))
    elif word == "/clear":
        conversation.clear()
    elif word.startswith("/"):
        _note(HELP)
    else:
        conversation.ask(line.strip(), _write)


def _lines() -> Iterator[str]:
    """Lines of the input; a prompt is shown to people only."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and history for input()
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            return


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
