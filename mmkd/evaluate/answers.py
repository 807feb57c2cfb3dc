"""From a task's generation settings to `generate`, from new tokens to an answer, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts

DEFAULT_NEW_TOKENS = 64  # where a task names no limit
ALWAYS = ("num_beams", "repetition_penalty", "length_penalty")
SAMPLING = ("temperature", "top_p", "top_k")


def settings_of(task: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` for a task's generation_kwargs: greedy, unless it asks for do_sample or a temperature."""
    temperature = task.get("temperature")
    samples = task.get("do_sample")
    if samples is None:
        samples = bool(temperature)
    samples = samples and temperature != 0  # tasks write do_sample: true, temperature: 0 for greedy
    settings = {"do_sample": bool(samples), "max_new_tokens": int(task.get("max_new_tokens") or DEFAULT_NEW_TOKENS)}
    passed_on = (*ALWAYS, *SAMPLING) if samples else ALWAYS
    return settings | {name: task[name] for name in passed_on if task.get(name) is not None}


def result(
    tokenizer: Any, new: list[int], prompt_tokens: int, ends: frozenset[int], task: dict[str, Any]
) -> GenerationResult:
    """The answer in a row of new token ids: up to the first end token, and to the first of the task's stop strings."""
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    text = tokenizer.decode(new[:stop], skip_special_tokens=True)
    until = task.get("until") or []
    for phrase in [until] if isinstance(until, str) else until:
        if phrase:
            text = text.split(phrase)[0]
    counts = TokenCounts(input_tokens=prompt_tokens, output_tokens=min(stop + 1, len(new)))
    return GenerationResult(text=text.strip(), token_counts=counts)


@dataclass
class Meter:
    """Tokens and seconds of one run, for lmms-eval's `throughput` block."""

    asks: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0
    images_asked: int = 0
    image_tokens: int = 0
    images_encoded: int = 0
    encode_seconds: float = 0.0
    answer_seconds: float = 0.0

    def encoded(self, images: int, seconds: float) -> None:
        self.images_encoded += images
        self.encode_seconds += seconds

    def answered(self, results: list[GenerationResult], images: int, placeholders: int, seconds: float) -> None:
        counts = [r.token_counts for r in results if r.token_counts]
        self.asks += len(results)
        self.prefill_tokens += sum(c.input_tokens or 0 for c in counts)
        self.new_tokens += sum(c.output_tokens or 0 for c in counts)
        self.images_asked += images
        self.image_tokens += placeholders
        self.answer_seconds += seconds

    def summary(self) -> dict[str, Any]:
        """Arguments of lmms-eval's log_metrics."""
        seconds, asks = self.encode_seconds + self.answer_seconds, max(self.asks, 1)
        return {
            "total_elapsed_time": seconds,
            "total_gen_tokens": self.new_tokens,
            "avg_speed": self.new_tokens / seconds if seconds else 0.0,
            "additional_metrics": {
                "request_count": self.asks,
                "prefill_tokens": self.prefill_tokens / asks,
                "image_tokens": self.image_tokens / max(self.images_asked, 1),
                "images_encoded": self.images_encoded,
                "encode_seconds": self.encode_seconds,
                "answer_seconds": self.answer_seconds,
            },
        }
