"""The two kinds of in-process models: a decoder that reads text, and a vision-language model behind a Reader."""

from __future__ import annotations

import torch

from mmkd.chat_marks import chat_marks, without_marks
from mmkd.config.synthesis_schema import LanguageModelSection, VlmSection
from mmkd.contracts import Spec, adapter
from mmkd.data.images import read_image
from mmkd.errors import DataError
from mmkd.inference.reader import Reader
from mmkd.models.compression import weights_fingerprint
from mmkd.precision import native_bf16
from mmkd.synthesis.backends import Call, with_images_first
from mmkd.synthesis.local import Inputs, LocalModel
from mmkd.synthesis.messages import with_schema


def language_model(section: LanguageModelSection) -> LocalModel:
    """A decoder by its adapter, in bf16 where the device has it.

    Raises: ConfigError, AssetError where there is no such model.
    """
    spec = Spec.parse(section.source)
    parts = adapter("language", spec)().load(spec, pretrained=True)
    name = "cuda" if section.device == "auto" and torch.cuda.is_available() else section.device
    device = torch.device("cpu" if name == "auto" else name)
    dtype = torch.bfloat16 if native_bf16(device.type == "cpu") else torch.float32
    model, tokenizer = parts.model.to(device, dtype).eval(), parts.tokenizer
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    marks = chat_marks(tokenizer)
    most = getattr(model.config, "max_position_embeddings", None) or 1 << 30

    def prepare(call: Call) -> tuple[Inputs, int]:
        if call.images:
            raise DataError(f"{section.source} reads text; this request has {len(call.images)} images.")
        text = _text(without_marks(_messages(call), marks), tokenizer)
        batch = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
        length = inputs["input_ids"].shape[1]
        if length >= most:
            raise DataError(f"this chat is {length:,} tokens long; {section.source} reads {most:,}.")
        return inputs, most - length

    identity = f"{section.source} {weights_fingerprint(model)} {str(dtype).removeprefix('torch.')}"
    generation = {"eos_token_id": ends, "pad_token_id": pad}
    return LocalModel(identity, parts.license, model, tokenizer, prepare, generation, section.batch_size)


def vlm(section: VlmSection) -> LocalModel:
    """A vision-language model as `mmkd serve` reads it. Raises ConfigError where it cannot be loaded or read so."""
    reader = Reader.open(section.model, section.tokens)
    loaded = reader.loaded

    def prepare(call: Call) -> tuple[Inputs, int]:
        inputs = reader.inputs(_messages(call), [read_image(image) for image in call.images])
        return inputs, reader.room(inputs)

    tokens = "full" if reader.tokens is None else reader.tokens
    processor = getattr(loaded.processor, "fingerprint", "")
    identity = f"{section.model} {weights_fingerprint(loaded.model)} {processor} {tokens}"
    # Other libraries' models may give pixel values of a different shape for each image, which make no batch.
    batch_size = section.batch_size if loaded.ours else 1
    tokenizer = loaded.processor.tokenizer
    return LocalModel(identity, section.license, loaded.model, tokenizer, prepare, loaded.generation, batch_size)


def _messages(call: Call) -> list[dict]:
    messages: list[dict] = []
    for turn, images in with_images_first(call.turns, len(call.images)):
        messages.append(
            {"role": turn.role, "content": [*[{"type": "image"}] * images, {"type": "text", "text": turn.text}]}
        )
    return messages if call.schema is None else with_schema(messages, call.schema)


def _text(messages: list[dict], tokenizer) -> str:
    """As the tokenizer's chat template has it; plain lines where it has none."""
    plain = [{"role": message["role"], "content": message["content"][-1]["text"]} for message in messages]
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    return "\n".join(message["content"] for message in plain) + "\n"
