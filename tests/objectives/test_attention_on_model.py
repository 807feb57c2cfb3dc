"""Attention distillation on a real (tiny, random) model: encode, read, capture, learn."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from mmkd.models import MmkdConfig, MmkdForConditionalGeneration
from mmkd.models.attention_capture import capture, capture_name
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.models.rotation import query_mover
from mmkd.objectives import AnswerBatch, ForwardKL, Outputs, VocoAttention

IMAGES, VISION, TEXT, LAYERS, VOCABULARY = 3, 9, 6, 2, 40


def tiny_model(tokens):
    torch.manual_seed(0)
    clip = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip |= {"image_size": 28, "patch_size": 14}
    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    vision = MmkdVisionConfig(
        library="transformers", architecture="clip_vision_model", architecture_config=clip, image_size=28
    )
    model = MmkdForConditionalGeneration(
        MmkdConfig(vision_config=vision, text_config=llama, voco={"tokens": tokens, "preset": "keep_sink"})
    )
    with torch.no_grad():
        for parameter in model.language_model.parameters():  # so that attention is far from uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.language_model.set_attn_implementation(capture_name("sdpa"))
    return model


def features(width=32):
    return torch.randn(IMAGES, VISION, width, generator=torch.Generator().manual_seed(3))


def questions(seed):
    return torch.randint(0, VOCABULARY, (IMAGES, TEXT), generator=torch.Generator().manual_seed(seed))


def prefix_of(model, tokens):
    """What text reads of the images: `tokens` C tokens each, or None for full vision."""
    rows = list(range(IMAGES))
    return model.prefix(model.blocks(features(), [1] * IMAGES, rows, [0] * IMAGES, IMAGES, tokens))


def side(model, prefix, ids, layers=range(LAYERS)):
    """Read `ids` on a prefix."""
    row, position = batch().rows, batch().positions
    with capture(layers, row, position, TEXT) as attention:
        hidden = model.read(prefix, ids, torch.ones_like(ids))
    return Outputs(
        hidden[row, position],
        model.head,
        attention,
        prefix.image_slots,
        prefix.sink_slots,
        prefix.segments,
        query_positions=prefix.starts[row, 0] + position,
        move_queries=query_mover(model.decoder.rotary_emb),
    )


def batch():
    row, position = torch.meshgrid(torch.arange(IMAGES), torch.arange(TEXT), indexing="ij")
    ones, zeros = torch.ones(IMAGES, TEXT, dtype=torch.bool), torch.zeros(IMAGES, TEXT, dtype=torch.long)
    return AnswerBatch(zeros.flatten(), row.flatten(), position.flatten(), ones, zeros, IMAGES * TEXT)


def objective(**options):
    made = VocoAttention(**options)
    made.needs(LAYERS, LAYERS)
    return made


def learned_prefix(model, tokens, steps, **options):
    """Learn the K,V of the C tokens themselves by attention distillation alone, on random questions."""
    with torch.no_grad():
        full, start = prefix_of(model, None), prefix_of(model, tokens)
    sinks = [[t[:, :, :1] for t in layer] for layer in start.layers]
    free = [[t[:, :, 1:].clone().requires_grad_() for t in layer] for layer in start.layers]
    learned = replace(start, layers=[tuple(map(joined, s, f)) for s, f in zip(sinks, free, strict=True)])
    optimizer = torch.optim.Adam([t for layer in free for t in layer], lr=0.1)
    for step in range(steps):
        ids = questions(step)
        with torch.no_grad():
            teacher = side(model, full, ids)
        learned = replace(start, layers=[tuple(map(joined, s, f)) for s, f in zip(sinks, free, strict=True)])
        optimizer.zero_grad()
        objective(**options)(side(model, learned, ids), teacher, batch()).loss.backward()
        optimizer.step()
    return start, learned, full


def joined(sink, rest):
    return torch.cat([sink, rest], dim=2)


@torch.no_grad()
def distance(model, prefix, full):
    """KL from the full run on questions never trained on, and the relative error of what attention reads."""
    ids = questions(10_000)
    ours, theirs = side(model, prefix, ids), side(model, full, ids)
    error = objective()(ours, theirs, batch()).report["attention_error"].mean
    return ForwardKL()(ours, theirs, batch()).report["kl"].mean, error


@pytest.mark.parametrize("queries", ["own", "teacher"])
def test_learning_the_attention_alone_brings_the_compressed_run_to_the_full_one_and_more_tokens_nearer(queries):
    model = tiny_model(8).requires_grad_(False)
    reached = []
    for tokens in (1, 8):
        start, learned, full = learned_prefix(model, tokens, steps=60, queries=queries)
        before, after = distance(model, start, full), distance(model, learned, full)
        assert after[0] < before[0]
        assert after[1] < 0.5 * before[1]
        reached.append(after[0] / before[0])
    assert reached[1] < 0.5
    assert reached[1] < 0.7 * reached[0]


@pytest.mark.parametrize("queries", ["own", "teacher"])
def test_the_same_images_at_another_place_are_the_same_to_the_loss(queries):
    model = tiny_model(1).requires_grad_(False)
    full = prefix_of(model, None)
    move, shift = query_mover(model.decoder.rotary_emb), torch.full((IMAGES,), 7)

    def moved(keys):  # [B, Hkv, P, d], every slot 7 positions on
        return torch.stack([move(slot, shift) for slot in keys.unbind(2)], dim=2)

    elsewhere = replace(full, layers=[(moved(k), v) for k, v in full.layers], starts=full.starts + 7)
    ours, theirs = side(model, elsewhere, questions(1)), side(model, full, questions(1))
    assert objective(queries=queries)(ours, theirs, batch()).loss < 1e-7
    theirs.move_queries = None
    unmoved = objective(queries=queries)(ours, theirs, batch()).loss
    assert (unmoved > 1e-3) == (queries == "teacher")


def test_the_gradient_reaches_the_compression_tokens_through_the_encode_pass():
    model = tiny_model(4)
    with torch.no_grad():
        theirs = side(model, prefix_of(model, None), questions(1))
    for tokens, reached in ((4, 4), (2, 2)):
        model.zero_grad()
        loss = objective(queries="teacher")(side(model, prefix_of(model, tokens), questions(1)), theirs, batch()).loss
        loss.backward()
        assert ((model.voco.embedding.weight.grad.abs().sum(1) > 0).sum()) == reached
