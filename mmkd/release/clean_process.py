"""Loads a release as a stranger would and writes down what it answers. Run by path, as `python -I clean_process.py`.

It imports nothing of mmkd, and where it runs as a program nothing of mmkd can be imported: the release has to stand on
its own files. `ask` is also called on the model in memory, so that both sides are asked by the same lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

BLOCKED = ("mmkd", "mmkd_adapters")

# One question on one picture each, and one without a picture. Of different lengths, none of them trained on.
QUESTIONS = [
    ([0], "What color is the shape?"),
    ([1], "Describe the picture in one short sentence, then say how many shapes there are."),
    ([0, 1], "Do both pictures show the same shape?"),
    ([], "What is the capital of France?"),
]
NEW_TOKENS = 12


class Blocker(MetaPathFinder):
    """Refuses to import `BLOCKED`, wherever they are installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is blocked here: a release must load without it.", name=fullname)
        return None


def block_imports() -> None:
    """Make `BLOCKED` impossible to import, and show that it worked. Raises RuntimeError where it did not."""
    sys.meta_path.insert(0, Blocker())
    for name in BLOCKED:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise RuntimeError(f"{name} can still be imported: this process proves nothing about the release.")


def pictures() -> list[Any]:
    """A red disc on blue and a green square on yellow; not square themselves, and of two sizes."""
    from PIL import Image, ImageDraw

    disc, square = Image.new("RGB", (96, 64), "blue"), Image.new("RGB", (70, 110), "yellow")
    ImageDraw.Draw(disc).ellipse((20, 8, 68, 56), fill="red")
    ImageDraw.Draw(square).rectangle((15, 30, 55, 70), fill="green")
    return [disc, square]


def ask(model: Any, processor: Any, readings: list[int | None] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put every question to a model, in every way of reading an image.

    Args:
        readings: token counts k, None for full vision; or no list where the processor knows no `voco_tokens`.

    Returns: logits [1, L, V] and image tensors by question and reading; answers and the model's own identity.
    """
    import torch

    tensors: dict[str, Any] = {}
    facts: dict[str, Any] = {"answers": {}}
    model.eval()
    for reading in readings or [None]:
        options = {} if readings is None else {"voco_tokens": reading}
        for number, (shown, question) in enumerate(QUESTIONS):
            key = f"{reading or 'full'}/{number}"
            inputs = _inputs(processor, question, shown, options)
            with torch.inference_mode():
                tensors[f"logits/{key}"] = model(**inputs).logits
                ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            tensors[f"ids/{key}"] = inputs["input_ids"]
            if "pixel_values" in inputs:
                tensors[f"pixels/{key}"] = inputs["pixel_values"]
            facts["answers"][key] = _answer(processor, inputs, ids)
            if reading is not None and shown:
                cache = _compressed(model, processor, shown, reading)
                text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                ids = model.generate(**text, voco_cache=cache, max_new_tokens=NEW_TOKENS, do_sample=False)
                tensors[f"cache/{key}"] = cache.layers[-1][1]  # the deepest values, [M, Hkv, 1 + k, d]
                facts["answers"][f"{key}/compressed"] = _answer(processor, inputs, ids)
    if any(readings or []):
        facts["identity"] = model.voco_identity()  # what a saved cache is checked against
    return tensors, facts


def _inputs(processor: Any, question: str, shown: list[int], options: dict[str, Any]) -> Any:
    images = pictures()
    content = [{"type": "image", "image": images[i]} for i in shown] + [{"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )


def _answer(processor: Any, inputs: Any, ids: Any) -> str:
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _compressed(model: Any, processor: Any, shown: list[int], tokens: int) -> Any:
    """The pictures compressed, saved and loaded, as they would be for another day."""
    images = pictures()
    cache = model.compress(**processor(images=[images[i] for i in shown]), tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        cache.save(f"{folder}/images.safetensors")
        return type(cache).load(f"{folder}/images.safetensors")


def main() -> None:
    """Load the release in `folder` with the Auto classes only, ask it, and write observed.safetensors and .json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--readings", type=json.loads, required=True)
    parser.add_argument("--remote-code", action="store_true")
    given = parser.parse_args()
    block_imports()

    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trust = {"trust_remote_code": True} if given.remote_code else {}
    processor = AutoProcessor.from_pretrained(given.folder, **trust)
    model = AutoModelForImageTextToText.from_pretrained(given.folder, **trust)
    tensors, facts = ask(model, processor, given.readings)
    facts |= {
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "processor_class": f"{type(processor).__module__}.{type(processor).__qualname__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "blocked": {name: name not in sys.modules for name in BLOCKED},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, given.out / "observed.safetensors")
    (given.out / "observed.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
