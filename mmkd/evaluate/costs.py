"""What an image and a question on it cost by token count: operations and K,V bytes counted, time measured.

The passes are those of `generate`: encode the image once, prefill the question on what is kept of it, decode.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmkd.errors import ConfigError
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.processing_mmkd import MmkdProcessor

if TYPE_CHECKING:
    from mmkd.models.prefix import Prefix

Tokens = int | Literal["full"]


@dataclass(frozen=True)
class Question:
    """One question on one image.

    Attributes:
        pixel_values: [tiles, 3, H, W].
        text_ids: [1, T], without sink and placeholders, up to where the answer starts.
    """

    pixel_values: Tensor
    text_ids: Tensor


@dataclass(frozen=True)
class Cost:
    """Counted cost of one image and one question.

    Attributes:
        image_tokens: slots of the image in the cache: k, or n with full vision.
        text_tokens: T.
        kv_bytes: K,V of the image in the cache; the sink, which all images share, is not counted.
        encode_flops: once an image: tower, projector, decoder over the block.
        prefill_flops: a question on the cached image, to the logits of its first answer token.
        decode_flops: the next token.
    """

    image_tokens: int
    text_tokens: int
    kv_bytes: int
    encode_flops: int
    prefill_flops: int
    decode_flops: int

    @property
    def cold_flops(self) -> int:
        """A question on an image not seen before."""
        return self.encode_flops + self.prefill_flops


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a prefill on a cached image and of a new token: one value a round, in the order of the rounds."""

    prefill: list[float]
    decode: list[float]

    def ratios(self, reference: Latency) -> tuple[list[float], list[float]]:
        """This over `reference`, round by round: prefill, decode."""
        pairs = (zip(self.prefill, reference.prefill, strict=True), zip(self.decode, reference.decode, strict=True))
        prefill, decode = ([ours / theirs for ours, theirs in pair] for pair in pairs)
        return prefill, decode


def ask(processor: MmkdProcessor, text: str, image: Image.Image | None = None) -> Question:
    """A question as the model's own processor and chat template put it; by default about a grey image that is cut into
    the most tiles there are, since costs depend on the number of tiles only: they are those of the dearest image."""
    # A row of squares, to which no other grid is as near.
    image = image or Image.new("RGB", (224 * processor.tiles, 224), "grey")
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=prompt, images=image, voco_tokens=None)
    ids = inputs["input_ids"]
    text_ids = ids[:, 1 + int((ids == processor.image_token_id).sum()) :]  # sink and placeholders stand before the text
    return Question(inputs["pixel_values"], text_ids)


@torch.inference_mode()
def count_costs(model: MmkdForConditionalGeneration, question: Question, tokens: list[Tokens]) -> dict[str, Cost]:
    """Counted cost by token count ("1", "2", .., "full").

    Raises: ConfigError for a count that the model cannot be read with.
    """
    check_tokens(model, tokens)
    found = {}
    # The counter knows no formula for the flash kernel of CPUs and would count its attention as nothing.
    with sdpa_kernel(SDPBackend.MATH):
        for count in tokens:
            encode_flops, prefix = _counted(lambda count=count: encode(model, question, count))
            prefill_flops, (_, past) = _counted(lambda prefix=prefix: prefill(model, prefix, question.text_ids))
            decode_flops, _ = _counted(lambda prefix=prefix, past=past: decode(model, prefix, past, question.text_ids))
            found[str(count)] = Cost(
                image_tokens=int(prefix.image_slots.sum()),
                text_tokens=question.text_ids.shape[1],
                kv_bytes=_kv_bytes(model, question, prefix, count),
                encode_flops=encode_flops,
                prefill_flops=prefill_flops,
                decode_flops=decode_flops,
            )
    return found


@torch.inference_mode()
def measure_latency(
    model: MmkdForConditionalGeneration, question: Question, tokens: list[Tokens], rounds: int = 30, new_tokens: int = 8
) -> dict[str, Latency]:
    """Time of prefill and decode by token count. Every round takes each count once, so that a ratio within a round
    compares neighbours in time on whatever else the machine does."""
    check_tokens(model, tokens)
    prefixes = {str(count): encode(model, question, count) for count in tokens}
    times: dict[str, Latency] = {name: Latency([], []) for name in prefixes}
    wait: Callable[[], None] = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    for number in range(rounds + 2):  # two to warm up
        for name, prefix in prefixes.items():
            wait()
            began = time.perf_counter()
            _, past = prefill(model, prefix, question.text_ids)
            wait()
            answered = time.perf_counter()
            for _ in range(new_tokens):
                decode(model, prefix, past, question.text_ids)
            wait()
            ended = time.perf_counter()
            if number >= 2:
                times[name].prefill.append(1000 * (answered - began))
                times[name].decode.append(1000 * (ended - answered) / new_tokens)
    return times


def costs_of(
    folder: str | Path, tokens: list[Tokens], text: str = "what color is the shape?", rounds: int = 10
) -> dict[str, dict[str, Any]]:
    """Counted costs and median times of a model folder in the dtype of its file, ready for a JSON summary; of a tiled
    model for an image of the most tiles.

    Raises: ConfigError for a folder that is no mmkd model, or a count it cannot be read with.
    """
    from mmkd.compose import load

    composed = load(folder, "auto")
    model, question = composed.model.eval(), ask(composed.processor, text)
    counted, timed = count_costs(model, question, tokens), measure_latency(model, question, tokens, rounds)
    return {
        name: asdict(cost)
        | {
            "prefill_ms": statistics.median(timed[name].prefill),
            "decode_ms": statistics.median(timed[name].decode),
        }
        for name, cost in counted.items()
    }


def check_tokens(model: MmkdForConditionalGeneration, tokens: list[Tokens]) -> None:
    """Raise ConfigError for a count that the model cannot be read with."""
    most = model.config.voco_tokens
    for count in tokens:
        if count != "full" and not (isinstance(count, int) and 1 <= count <= most):
            raise ConfigError(
                f"tokens {count!r}: this model can be read with {f'1 to {most} or ' if most else ''}full."
            )


# --- the passes -------------------------------------------------------------------------------------------------------


def encode(model: MmkdForConditionalGeneration, question: Question, tokens: Tokens) -> Prefix:
    """The image as the text will meet it: tower, projector, decoder over the block."""
    features = model.image_features(question.pixel_values)  # [tiles, n, D]
    return model.prefix(
        model.blocks(features, [len(features)], [0], [0], batch=1, tokens=None if tokens == "full" else tokens)
    )


def prefill(model: MmkdForConditionalGeneration, prefix: Prefix, text_ids: Tensor) -> tuple[Tensor, Any]:
    """Logits [1, 1, V] of the first answer token, and the cache that decoding goes on with."""
    past = prefix.cache()
    output = _forward(model, prefix, past, text_ids, start=0)
    return output.logits, past


def decode(model: MmkdForConditionalGeneration, prefix: Prefix, past: Any, text_ids: Tensor) -> Tensor:
    """Logits [1, 1, V] of one more token on the cache, which grows by it. Which token does not change what it costs."""
    start = past.get_seq_length() - prefix.valid.shape[1]
    return _forward(model, prefix, past, text_ids[:, -1:], start).logits


def _forward(model: MmkdForConditionalGeneration, prefix: Prefix, past: Any, ids: Tensor, start: int) -> Any:
    seen = torch.ones(1, start + ids.shape[1], dtype=torch.long, device=ids.device)
    positions = prefix.starts + torch.arange(start, start + ids.shape[1], device=ids.device)  # [1, T]
    return model(
        input_ids=ids,
        attention_mask=torch.cat([prefix.valid.long(), seen], dim=1),
        position_ids=positions,
        past_key_values=past,
        prefix_bias=prefix.bias,
        use_cache=True,
        logits_to_keep=1,
    )


def _kv_bytes(model: MmkdForConditionalGeneration, question: Question, prefix: Prefix, tokens: Tokens) -> int:
    if tokens != "full":
        tiles = torch.tensor([len(question.pixel_values)])
        return model.compress(question.pixel_values, tokens=tokens, image_tiles=tiles).nbytes
    slots = prefix.image_slots[0]  # [P]
    return sum(t[0][:, slots].numel() * t.element_size() for layer in prefix.layers for t in layer)


def _counted(work: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result
