"""Heads as real models have them: padded to unequal widths, under a soft cap, or scaled."""

import pytest
import torch
from transformers import CohereConfig, Gemma2Config, GraniteConfig, HyperCLOVAXConfig, LlamaConfig

from mmkd.objectives import CrossEntropy, ForwardKL, token_losses
from mmkd.teachers.reading import answer_batch, prefixes, read_outputs
from tests.models import tiny
from tests.objectives.sides import batch, close, gradients, outputs, random_targets, side
from tests.objectives.steps import CASES, objective

STUDENT, TEACHER, REAL = 151_936, 152_064, 151_665  # rows of the heads of Qwen2.5 0.5B and 7B, and their real ids
WIDTH, TOKENS = 8, 3
PAIRS = ["forward_kl", "reverse_kl", "generalised_js", "skewed_kl", "total_variation", "taid"]


def padded(dtype=torch.float32):
    """A student and a teacher whose rows of padding would win every comparison."""
    (hs, fs), (ht, ft) = side(WIDTH, STUDENT, dtype, tokens=TOKENS), side(WIDTH, TEACHER, dtype, 1, TOKENS)
    with torch.no_grad():
        fs.weight[REAL:] *= 9.0
        ft.weight[REAL:] *= -9.0
    return hs, fs, ht, ft


def naive_forward_kl(zs, zt, t):
    p = torch.softmax(zt / t, -1)
    return t * t * (p * (p.log() - torch.log_softmax(zs / t, -1))).sum()


@pytest.mark.parametrize("whole", [False, True])
def test_kl_between_heads_of_151936_and_152064_rows_is_that_on_the_real_ids(whole):
    hs, fs, ht, ft = padded()
    student = outputs(hs, fs, REAL)
    student.head_weight = fs.weight if whole else None
    made = ForwardKL(temperature=2.0, chunk=2)
    found = made(student, outputs(ht, ft, REAL), batch(random_targets(REAL, TOKENS))).loss
    states, weight = hs.detach().double().requires_grad_(), fs.weight.detach()[:REAL].double().requires_grad_()
    expected = naive_forward_kl(states @ weight.T, (ht.detach().double() @ ft.weight.detach()[:REAL].double().T), 2.0)
    to_states, to_weight = gradients(found, hs, fs.weight)
    close([found, to_states, to_weight[:REAL]], [expected, *gradients(expected, states, weight)], torch.float32)
    assert to_weight[REAL:].abs().max() == 0


@pytest.mark.parametrize("name", PAIRS)
def test_every_divergence_between_padded_heads_is_the_one_between_heads_cut_to_the_real_ids(name):
    assert CASES[name]["chunk"] < TOKENS
    hs, fs, ht, ft = padded()
    targets = batch(random_targets(REAL, TOKENS))
    found = objective(name)(outputs(hs, fs, REAL), outputs(ht, ft, REAL), targets).loss
    cut = (outputs(hs, lambda h: h @ fs.weight[:REAL].T), outputs(ht, lambda h: h @ ft.weight[:REAL].T))
    expected = objective(name)(*cut, targets).loss
    to_head = gradients(found, hs, fs.weight)
    close([found, *to_head], [expected, *gradients(expected, hs, fs.weight)], torch.float32)
    assert to_head[1][REAL:].abs().max() == 0


SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
DECODERS = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SIZES, logits_scaling=2.5, embedding_multiplier=3.0),
    "hyperclovax": HyperCLOVAXConfig(**SIZES, logits_scaling=0.4),
    "cohere": CohereConfig(**SIZES, logit_scale=0.4),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def read(model):
    """What objectives read of two texts, four answer tokens and three, on an image each; and the model's own logits."""
    labels = IDS.clone()
    labels[0, :2] = labels[1, :3] = -100
    zeros = torch.zeros_like(IDS)
    made = {
        "input_ids": IDS,
        "labels": labels,
        "attention_mask": torch.ones_like(IDS),
        "position_ids": torch.arange(6).expand(2, -1),
        "segment_ids": zeros,
        "image_tiles": torch.tensor([1, 1]),
        "image_rows": torch.tensor([0, 1]),
        "image_segments": torch.tensor([0, 0]),
        "normalizer": 7.0,
    }
    answers, images = answer_batch(made), tiny.features(model, 2)
    [(_, prefix)] = prefixes(model, images, made, [None])
    embed = model.get_input_embeddings()
    sink = embed(torch.full((2, 1), tiny.SINK))
    sequence = torch.cat([sink, images, embed(IDS)], 1)  # the definition of full vision
    logits = model.language_model(inputs_embeds=sequence).logits[:, -IDS.shape[1] :]
    return read_outputs(model, prefix, made, answers), answers, logits[answers.rows, answers.positions]


@pytest.mark.parametrize("name", DECODERS)
def test_a_soft_cap_or_scale_of_the_head_reaches_the_losses_as_the_models_own_logits_have_it(name, monkeypatch):
    monkeypatch.setitem(tiny.DECODERS, "student", DECODERS[name])
    monkeypatch.setitem(tiny.DECODERS, "teacher", DECODERS["gemma2" if name != "gemma2" else "cohere"])
    model, other = tiny.build("student", tokens=None), tiny.build("teacher", tokens=None)
    student, answers, logits = read(model)
    teacher, _, wanted = read(other)
    head = model.get_output_embeddings().weight
    # Gradients are made ahead through a plain product alone.
    assert (student.head_weight is head) if name == "llama" else (student.head_weight is None)
    terms = [(CrossEntropy(chunk=2), 0.3), (ForwardKL(temperature=2.0, chunk=2), 1.7)]
    found = token_losses(terms, student, teacher, answers).loss
    entropy = torch.nn.functional.cross_entropy(logits, answers.answer_ids, reduction="sum")
    expected = (0.3 * entropy + 1.7 * naive_forward_kl(logits, wanted.detach(), 2.0)) / 7
    layer = model.decoder.layers[0].mlp.down_proj.weight
    # Norms of some decoders are in fp32, whatever the model is in.
    close([found, *gradients(found, head, layer)], [expected, *gradients(expected, head, layer)], torch.float32)
