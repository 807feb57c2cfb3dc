"""Steps whose answers the student samples itself, so that it is taught where its own words lead it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from mmkd.compose import Composed, answer_ends
from mmkd.config.schema import Config, OnPolicySection
from mmkd.data.samples import Sample, texts_of
from mmkd.errors import ConfigError
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.objectives import build
from mmkd.teachers.reading import evaluating


def check_on_policy(config: Config) -> None:
    """Refuse stages that ask for what cannot be. Raises ConfigError."""
    for stage in config.stages:
        if stage.on_policy is None:
            continue
        if config.deepspeed.stage == 3:
            raise ConfigError(
                f"stage {stage.name}: on_policy samples from whole weights, and deepspeed.stage 3 cuts them up; "
                "use stage 2."
            )
        if config.teacher is not None and config.teacher.kind == "cached":
            raise ConfigError(
                f"stage {stage.name}: on_policy asks the teacher about answers that are new each time, and "
                "teacher.kind: cached knows those of the data; use teacher.kind: live."
            )
        if config.data.rationales is not None:
            raise ConfigError(
                f"stage {stage.name}: on_policy puts the student's own answer in the place of those of the data, and "
                "data.rationales weighs these and their rationales; take one of them out."
            )
        if not any(build(section).teacher for section in stage.objectives or config.objectives):
            raise ConfigError(
                f"stage {stage.name}: on_policy needs an objective by which a teacher judges the student's own tokens, "
                "e.g. reverse_kl or generalised_js; cross_entropy and uld do not."
            )


def is_on_policy(section: OnPolicySection | None, seed: int, step: int) -> bool:
    """Whether the student answers at a step: a pure function of (seed, step), the same on every rank."""
    return section is not None and random.Random(f"on_policy/{seed}/{step}").random() < section.share


def stop_ids(composed: Composed) -> list[int]:
    """Tokens that end an answer of the student: special ones of its tokenizer, and the end of its chat template."""
    tokenizer = composed.processor.tokenizer
    return list(dict.fromkeys([*tokenizer.all_special_ids, *answer_ends(composed.model, tokenizer)]))


def own_answers(
    student: MmkdForConditionalGeneration,
    batch: dict[str, Any],
    tokens: int | None,
    section: OnPolicySection,
    stop_ids: Sequence[int],
    seed: str,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """A micro batch of the collator with the first question of every sample, and what the student answers to it.

    Args:
        tokens: k with which the student reads images; None for full vision.
        stop_ids: tokens that end an answer; the first also pads.
        seed: of the sampling.
        vocabulary: only ids below this are sampled: rows above are padding, which no one has a token for, or tokens
            that the teacher's embedding lacks. None takes all.

    Returns: the batch in the collator's layout, one sample a row, on the student's device; the sampled tokens are its
        labels, the one that ended the answer among them.
    """
    device = student.device
    questions = _questions(batch)
    prompts = [_prompt(student, ids, tiles, tokens) for ids, tiles in questions]
    input_ids = pad_sequence(prompts, True, stop_ids[0], padding_side="left").to(device)  # [B, L]
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, padding_side="left").to(device)
    images = {}
    if any(tiles for _, tiles in questions):
        name = "pixel_values" if "pixel_values" in batch else "image_features"
        images = {
            "pixel_values" if name == "pixel_values" else "tower_features": batch[name].to(device),
            "image_tiles": batch["image_tiles"],
            "voco_tokens": tokens,
        }
    width = student.config.text_config.vocab_size
    settings = GenerationConfig(
        do_sample=True,
        temperature=section.temperature,
        top_k=0,
        max_new_tokens=section.max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        suppress_tokens=list(range(width if vocabulary is None else vocabulary, width)) or None,
    )
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with evaluating(student), _generating(student, settings), forked:
        torch.manual_seed(random.Random(seed).getrandbits(63))
        sequences = student.generate(input_ids, mask, **images)
    samples = []
    for (ids, tiles), answer in zip(questions, sequences[:, input_ids.shape[1] :].tolist(), strict=True):
        end = next((place for place, token in enumerate(answer, 1) if token in stop_ids), len(answer))
        text = ids.tolist() + answer[:end]
        samples.append(Sample("", text, [0] * len(ids) + [1] * end, None, tiles, len(text)))
    texts = texts_of([[sample] for sample in samples], stop_ids[0])
    rows = [row for row, (_, tiles) in enumerate(questions) for _ in tiles] or [-1]
    own: dict[str, Any] = {
        "image_rows": torch.tensor(rows),
        "image_segments": torch.zeros(len(rows), dtype=torch.long),
    }
    if "teacher" in batch:  # its pixels of the same images
        own["teacher"] = batch["teacher"] | own
    return batch | texts | own


@contextmanager
def _generating(student: MmkdForConditionalGeneration, settings: GenerationConfig) -> Iterator[None]:
    """Let `settings` be all that generation goes by. Those given to `generate` are filled up with the model's own, as
    many chat models bring a top_p and a repetition penalty, and the samples would not be the student's distribution."""
    own, student.generation_config = student.generation_config, settings
    try:
        yield
    finally:
        student.generation_config = own


def _questions(batch: dict[str, Any]) -> list[tuple[Tensor, list[int]]]:
    """Text ids up to the first answer, and the tiles of each image, of every sample of a batch."""
    found = []
    for row, (ids, labels, mask, segments) in enumerate(
        zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), batch["segment_ids"], strict=True)
    ):
        for segment in range(int(segments.max()) + 1):
            own = (segments == segment) & mask
            until = int((labels[own] != -100).nonzero()[0, 0])
            here = (batch["image_rows"] == row) & (batch["image_segments"] == segment)
            found.append((ids[own][:until], batch["image_tiles"][here].tolist()))
    return found


def _prompt(student: MmkdForConditionalGeneration, ids: Tensor, tiles: list[int], tokens: int | None) -> Tensor:
    """The sink, image placeholders, text, as the processor would put them."""
    config = student.config
    count = sum(tile * config.image_tokens if tokens is None else tokens for tile in tiles)
    return torch.cat([ids.new_tensor([config.sink_token_id] + [config.image_token_id] * count), ids])
