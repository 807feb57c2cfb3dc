"""Reading a batch with a model: what every teacher and the student do alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import ConfigError
from mmkd.models.attention_capture import capture
from mmkd.models.hidden_capture import capture_hidden, final_norm
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.parts import BESIDE_HEAD
from mmkd.models.prefix import Prefix
from mmkd.models.rotation import otherwise_turned, plain_rotary, query_mover
from mmkd.objectives import AnswerBatch, Outputs, Pairs, Spans


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside, and each of its modules as it was outside, also after an error: a tower may stand in
    eval mode where the rest trains."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def require_turnable(model: MmkdForConditionalGeneration, layers: tuple[int, ...], side: str) -> None:
    """Raises ConfigError where queries and keys of `layers` cannot be moved to other positions. `side`: for messages.

    A decoder without one rotary embedding for all its layers passes: its states are compared where they stand.
    """
    with evaluating(model):
        wrong = sorted(set(layers) & set(otherwise_turned(model)))
    if wrong:
        raise ConfigError(
            f"layers {', '.join(map(str, wrong))} of the {side}'s decoder ({model.config.text_config.model_type}) turn "
            "keys by interleaved channels or not at all, and objectives turn them back by halves. Use "
            "attention_relations with relations: [vv] or layers of another kind, voco_attention with queries: own."
        )


def answer_batch(batch: dict[str, Any], shared_ids: Tensor | None = None) -> AnswerBatch:
    """The answer tokens of a batch of the collator.

    Args:
        shared_ids: where the teacher reads tokens of its own, ids of the tokens that both sides have, [2, m].
    """
    labels = batch["labels"]  # [B, T]
    rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)  # the query at t predicts token t + 1
    spans = None
    if shared_ids is not None:
        ours, theirs, matched = batch["teacher"]["spans"].unbind(1)
        spans = Spans(ours, theirs, matched.bool(), shared_ids)
    pairs = None
    if "preference" in batch:
        preference = batch["preference"][rows, positions + 1]  # [N]
        pairs = Pairs(preference, int(preference.max()), batch["pair_normalizer"])
    return AnswerBatch(
        answer_ids=labels[rows, positions + 1],
        rows=rows,
        positions=positions,
        text_mask=batch["attention_mask"].bool(),
        segment_ids=batch["segment_ids"],
        normalizer=batch["normalizer"],
        head_calls=batch.get("head_calls"),
        spans=spans,
        weights=batch["loss_weights"][rows, positions + 1] if "loss_weights" in batch else None,
        images=(batch["image_rows"] >= 0).repeat_interleave(batch["image_tiles"]),
        image_normalizer=batch.get("image_normalizer", 1.0),
        pairs=pairs,
    )


def counted(batch: dict[str, Any]) -> tuple[int, int, int, int]:
    """What the losses of a batch of the collator are means over: answer tokens to be learned, preference pairs, tiles
    of real images, and answers where those are weighed."""
    answers, pairs = batch["labels"][:, 1:] != -100, 0
    if "preference" in batch:
        answers &= batch["preference"][:, 1:] >= 0
        pairs = int(batch["preference"].max())
    tiles = batch["image_tiles"][batch["image_rows"] >= 0]
    return int(answers.sum()), pairs, int(tiles.sum()), int(batch.get("loss_answers", 0))


def vision(model: MmkdForConditionalGeneration, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Projected vision tokens [M, n, D] of a batch's images, and the tower's features under them, [M, N, C]."""
    features = batch.get("image_features")
    if features is None:
        features = model.tower_features(batch.get("pixel_values"))
    return model.image_features(None, features), features


def tower_map(model: MmkdForConditionalGeneration, features: Tensor) -> Tensor:
    """Features of a model's tower, [M, rows * cols, C], as a map [M, C, rows, cols]."""
    grid = model.config.vision_config.rows, model.config.vision_config.cols
    return features.unflatten(1, grid).movedim(3, 1)


def prefixes(
    model: MmkdForConditionalGeneration, features: Tensor, batch: dict[str, Any], reads: list[int | None]
) -> list[tuple[int | None, Prefix]]:
    """What text reads for each token count in `reads`; all compressed counts share one encode pass."""
    tiles, rows, segments = (batch[name].tolist() for name in ("image_tiles", "image_rows", "image_segments"))
    count, samples = len(batch["input_ids"]), int(batch["segment_ids"].max()) + 1
    readers = batch["readers"].tolist() if "readers" in batch else None
    found: list[tuple[int | None, Prefix]] = []
    compressed = [tokens for tokens in reads if tokens is not None]
    if compressed:
        blocks = model.blocks(features, tiles, rows, segments, count, max(compressed), samples)
        encoded = model.encode(blocks)
        found += [(tokens, model.lay_out(blocks, *encoded, tokens, readers)) for tokens in compressed]
    if None in reads:
        blocks = model.blocks(features, tiles, rows, segments, count, None, samples)
        found.append((None, model.lay_out(blocks, *model.encode(blocks), readers=readers)))
    return found


def read_outputs(
    model: MmkdForConditionalGeneration,
    prefix: Prefix,
    batch: dict[str, Any],
    answers: AnswerBatch,
    attention_layers: tuple[int, ...] = (),
    hidden_layers: tuple[int, ...] = (),
) -> Outputs:
    """Run the text on a prefix and take what the objectives read: q, k, v of `attention_layers`, the output of
    `hidden_layers`."""
    text = (batch["input_ids"], batch["attention_mask"], batch["position_ids"], batch["segment_ids"])
    at = (answers.rows, answers.positions)
    attention, kept = {}, {}
    with ExitStack() as captures:
        if attention_layers:
            attention = captures.enter_context(capture(attention_layers, *at, batch["input_ids"].shape[1]))
        if hidden_layers:
            kept = captures.enter_context(capture_hidden(model.decoder, hidden_layers, *at))
        hidden = model.read(prefix, *text)  # [B, T, D]
    if prefix.bias is not None:
        for layer in attention.values():
            layer.bias = prefix.bias[:, None]  # [B, 1, P]
    segments = answers.segment_ids if prefix.starts.shape[1] > 1 else torch.zeros_like(answers.segment_ids)
    positions = batch["position_ids"] + prefix.starts.gather(1, segments)  # [B, T]
    rotary = plain_rotary(model.decoder)
    return Outputs(
        answer_hidden=hidden[at],  # [N, D]
        head=model.head,
        attention=attention,
        image_slots=prefix.image_slots,
        sink_slots=torch.zeros_like(prefix.valid) if prefix.hide_sink else prefix.sink_slots,
        slot_segments=prefix.segments,
        query_positions=positions[at],
        move_queries=query_mover(rotary) if rotary is not None else None,
        text_positions=positions,
        hidden=kept,
        final_norm=lambda states: final_norm(model.decoder)(states),
        head_weight=_head_weight(model),
    )


def product_weight(model: MmkdForConditionalGeneration) -> Tensor | None:
    """[V, D] where the head is the product with it and nothing else."""
    head, text = model.get_output_embeddings(), model.config.text_config
    more = any(getattr(text, name, None) is not None for name in BESIDE_HEAD)
    if type(head) is not nn.Linear or head.bias is not None or more:
        return None
    # ZeRO-3 gathers what is asked for by its name outside of its module, and keeps it whole through all later steps.
    [weight] = head.parameters()
    return weight


def _head_weight(model: MmkdForConditionalGeneration) -> Tensor | None:
    weight = product_weight(model)
    # What ZeRO-3 has cut up, and so marked, is whole only where its gathering is asked for.
    return None if hasattr(weight, "ds_id") else weight
