"""The lmms-eval model `mmkd`: scores mmkd models, and any other image-text-to-text folder of transformers.

Requests are taken image by image: an image is looked at once and all its questions are asked about what was seen: its
VoCo cache, or with full vision its tower features.
Within a window of images the questions are batched by length; answers go back in the order of the requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from PIL import Image
from tqdm import tqdm

from mmkd.errors import ConfigError
from mmkd.evaluate.answers import Meter, result, settings_of
from mmkd.evaluate.loading import load
from mmkd.evaluate.requests import Ask, read_request
from mmkd.evaluate.seen_images import Compressed, Features, look_at

Tokens = int | Literal["full"]

BATCHES_PER_WINDOW = 8  # enough questions to sort by length, few enough images to hold at once


class MmkdLmms(lmms):
    """An lmms-eval chat model.

    Args:
        pretrained: folder or hub id.
        voco_tokens: k, or "full" for all vision tokens; the model's own by default: its K, or full if it has none.
        dtype: float32, bfloat16 or float16; float32 on a CPU, else that of the checkpoint.
        blind: drop every image, to see how far language alone goes.
        device: cpu, cuda, ...; cuda where there is one.
        trust_remote_code: run code that comes with a model of another library. mmkd releases do not need it.

    Raises: ConfigError for a folder that is no image-text-to-text model, or a token count it cannot be read with.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        voco_tokens: Tokens | None = None,
        dtype: str | None = None,
        blind: bool = False,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        try:
            self.batch_size = min(int(batch_size), int(max_batch_size or batch_size))
        except ValueError:
            raise ConfigError(f"batch_size={batch_size!r}: mmkd takes a whole number, e.g. 64.") from None
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.loaded = load(pretrained, dtype, self.device, trust_remote_code)
        self.read_with(voco_tokens, blind)

    def read_with(self, voco_tokens: Tokens | None = None, blind: bool = False) -> None:
        """Change how images are read from now on, without loading the model again."""
        most = self.loaded.most_tokens
        tokens = (most or "full") if voco_tokens is None else voco_tokens
        allowed = [f"1 to {most}"] * bool(most) + ["full"]
        if tokens != "full" and not (isinstance(tokens, int) and 1 <= tokens <= most):
            raise ConfigError(f"voco_tokens={tokens}: {self.loaded.name} can be read with {' or '.join(allowed)}.")
        self.tokens: int | None = None if tokens == "full" else int(tokens)
        self.blind = blind

    def clean(self) -> None:
        """Keeps the model, which lmms-eval would drop after a run: the next run reads it with other tokens."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("mmkd scores generated answers; choose a task of output_type generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("mmkd answers in one round; choose a task of output_type generate_until.")

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        meter = Meter()
        asks = []
        for index, request in enumerate(requests):
            asks.append(self._read(index, request))
            asks[-1].images = []  # opened again by its window: the images of a whole suite would fill the memory
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(asks), desc="Answering", disable=self.rank != 0) as progress:
            for window in _windows(asks, self.batch_size * BATCHES_PER_WINDOW):
                for ask, answer in self._answers(window, requests, meter):
                    answers[ask.index] = answer
                    self.cache_hook.add_partial("generate_until", (ask.text, ask.settings), answer.text)
                    progress.update()
        log_metrics(**meter.summary())
        return [answers[i] for i in range(len(requests))]

    def _read(self, index: int, request: Instance) -> Ask:
        return read_request(index, request, self.task_dict, self.loaded, self.blind)

    def _answers(
        self, window: list[Ask], requests: list[Instance], meter: Meter
    ) -> Iterator[tuple[Ask, GenerationResult]]:
        """Each ask of a window with its answer. The window's images are held no longer than this takes."""
        images = self._images(window, requests)
        seen = self._seen(images, meter)
        for batch in _batches(window, self.batch_size):
            yield from zip(batch, self._answer(batch, images, seen, meter), strict=True)

    def _images(self, window: list[Ask], requests: list[Instance]) -> dict[str, Image.Image]:
        """Every image of the window by its key, opened from its request again."""
        found: dict[str, Image.Image] = {}
        for ask in window:
            if not found.keys() >= set(ask.image_keys):
                found |= zip(ask.image_keys, self._read(ask.index, requests[ask.index]).images, strict=True)
        return found

    def _seen(self, images: dict[str, Image.Image], meter: Meter) -> Compressed | Features | None:
        """Every image, looked at once; None where there are none, or the model is not of mmkd."""
        if not images or not self.loaded.ours:
            return None
        began = time.perf_counter()
        seen = look_at(self.loaded, images, self.tokens)
        meter.encoded(len(images), time.perf_counter() - began)
        return seen

    def _answer(
        self, batch: list[Ask], images: dict[str, Image.Image], seen: Compressed | Features | None, meter: Meter
    ) -> list[GenerationResult]:
        """Answers of one batch, in its order; all its asks share their generation settings."""
        began = time.perf_counter()
        processor, keys = self.loaded.processor, [key for ask in batch for key in ask.image_keys]
        arguments: dict[str, Any] = {"text": [ask.text for ask in batch], "padding": True, "return_tensors": "pt"}
        if self.loaded.ours:
            arguments["voco_tokens"] = self.tokens
        elif (start := processor.tokenizer.bos_token) and batch[0].text.startswith(start):
            arguments["add_special_tokens"] = False  # the chat template has already written it
        if keys and seen is None:
            arguments["images"] = [[images[key] for key in ask.image_keys] for ask in batch if ask.image_keys]
        elif keys and seen is not None:
            arguments |= seen.for_processor(keys)
        inputs = dict(processor(**arguments, padding_side="left"))
        if keys and seen is not None:
            inputs |= seen.for_generate(keys)
        inputs = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.loaded.model.dtype)
        if not keys:
            inputs.pop("voco_tokens", None)
        prompt = inputs["input_ids"]
        sequences = self.loaded.model.generate(**inputs, **{**self.loaded.generation, **settings_of(batch[0].settings)})
        placeholders = int((prompt == self.loaded.image_token_id).sum())
        lengths = inputs["attention_mask"].sum(1).tolist()
        results = [
            result(processor.tokenizer, new, length, self.loaded.ends, ask.settings)
            for ask, new, length in zip(batch, sequences[:, prompt.shape[1] :].tolist(), lengths, strict=True)
        ]
        meter.answered(results, len(keys), placeholders, time.perf_counter() - began)
        return results


def _windows(asks: list[Ask], size: int) -> Iterator[list[Ask]]:
    """Asks with the same images together, in windows of about `size` asks that never part them."""
    groups: dict[tuple[str, ...], list[Ask]] = {}
    for ask in asks:
        groups.setdefault(ask.image_keys, []).append(ask)
    window: list[Ask] = []
    for group in groups.values():
        window.extend(group)
        if len(window) >= size:
            yield window
            window = []
    if window:
        yield window


def _batches(window: list[Ask], size: int) -> Iterator[list[Ask]]:
    """Batches of equal generation settings, longest prompts first."""
    kinds: dict[str, list[Ask]] = {}
    for ask in window:
        kinds.setdefault(ask.settings_key, []).append(ask)
    for kind in kinds.values():
        kind.sort(key=lambda ask: (-len(ask.text), ask.index))
        for start in range(0, len(kind), size):
            yield kind[start : start + size]
