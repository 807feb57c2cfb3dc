"""Special tokens in the text of a chat: none is let through, or a text could end its turn and speak for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def chat_marks(tokenizer: Any, *others: str | None) -> list[str]:
    """What a tokenizer reads as a special token wherever it stands, e.g. `<|im_end|>`, and `others`."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = {*tokenizer.all_special_tokens, *added, *others}
    return sorted((mark for mark in marks if mark and mark.strip()), reverse=True)  # the longer before its beginning


def without_marks(messages: list[dict[str, Any]], marks: Sequence[str]) -> list[dict[str, Any]]:
    """The messages, contents of text or of parts, without what would be a special token or an image in their text."""

    def clean(text: str) -> str:
        for blank in ("", " "):  # then what came together where one was taken out, which a space keeps apart
            for mark in marks:
                text = text.replace(mark, blank)
        return text

    def cleaned(content: Any) -> Any:
        if isinstance(content, str):
            return clean(content)
        return [{**part, "text": clean(part["text"])} if part["type"] == "text" else part for part in content]

    return [{**message, "content": cleaned(message["content"])} for message in messages]
