"""A vision-language model of mmkd's as the one who is asked."""

from __future__ import annotations

import io

import torch
from PIL import Image

from mmkd.inference.reader import Reader

MOST_TOKENS = 32


class VlmAsker:
    """An Asker around a Reader. Not for several threads at once, as its Reader is not.

    Args:
        prompt: what the model is told; {question} becomes the question. The question may come from a program, and so
            from text that stood in a picture: it is made one line, and what the model answers is checked to be text.
    """

    def __init__(self, reader: Reader, prompt: str = "{question}"):
        self.reader, self.prompt = reader, prompt

    @torch.inference_mode()
    def __call__(self, image: Image.Image, question: str) -> str:
        """Raises: DataError where the question is longer than the model reads."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        text = self.prompt.replace("{question}", " ".join(question.split()))
        content = [{"type": "image"}, {"type": "text", "text": text}]
        loaded = self.reader.loaded
        inputs = self.reader.inputs([{"role": "user", "content": content}], [buffer.getvalue()])
        most = min(MOST_TOKENS, self.reader.room(inputs))
        tokens = loaded.model.generate(**inputs, **loaded.generation, do_sample=False, max_new_tokens=most)[0]
        new = tokens[inputs["input_ids"].shape[1] :]
        return loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
