"""Captured q, k, v reproduce what the layer itself computed, on every kind of decoder."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    modeling_flash_attention_utils,
)

from mmkd.models.attention_capture import capture, capture_name
from mmkd.models.rotation import query_mover

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**GROUPED),
    "gemma": GemmaConfig(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, sliding_window=64, attn_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gpt_neox": GPTNeoXConfig(**SMALL, rotary_pct=0.5),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
ROWS, POSITIONS = torch.tensor([0, 0, 1]), torch.tensor([0, 3, 2])
PREFIX, TEXT = 5, 4


def decoder(kind, attention):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention).eval()
    with torch.no_grad():
        for p in model.parameters():  # the default initialisation hardly attends at all
            p.add_(torch.randn_like(p) * 0.3)
    return model


def prefilled(model):
    """A cache holding a prefix of two rows."""
    ids = torch.randint(0, 50, (2, PREFIX), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def read(model, cache, **kwargs):
    ids = torch.randint(0, 50, (2, TEXT), generator=torch.Generator().manual_seed(2))
    return model(input_ids=ids, past_key_values=cache, **kwargs)


def attention_output(layer, positions):
    """The definition: softmax over every key up to the query's own, [N, H, dv]."""
    repeat = layer.query.shape[1] // layer.key.shape[1]
    key = layer.key[ROWS].repeat_interleave(repeat, 1)  # [N, H, S, d]
    value = layer.value[ROWS].repeat_interleave(repeat, 1)
    scores = torch.einsum("nhd,nhsd->nhs", layer.query, key) * layer.scaling
    if layer.softcap:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    hidden = torch.arange(key.shape[2]) > PREFIX + positions[:, None, None]
    return torch.einsum("nhs,nhsd->nhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_captured_queries_keys_and_values_reproduce_the_layers_attention(kind, attention):
    if kind == "gemma2" and attention == "sdpa":
        pytest.skip("gemma2's soft cap needs eager attention")
    model = decoder(kind, attention)
    plain = read(model, prefilled(model)).logits
    model.set_attn_implementation(capture_name(attention))
    outputs = {}
    for layer, block in enumerate(model.base_model.h if kind == "gpt2" else model.base_model.layers):
        inner = block.attn if kind == "gpt2" else block.attention if kind == "gpt_neox" else block.self_attn
        projection = inner.c_proj if kind == "gpt2" else inner.dense if kind == "gpt_neox" else inner.o_proj
        projection.register_forward_pre_hook(lambda _, args, layer=layer: outputs.update({layer: args[0]}))
    cache = prefilled(model)
    with capture([0, 1], ROWS, POSITIONS, TEXT) as layers:
        captured = read(model, cache).logits
    torch.testing.assert_close(captured, plain)
    assert sorted(layers) == [0, 1]
    for index, layer in layers.items():
        assert layer.key.shape[2] == PREFIX + TEXT
        expected = outputs[index][ROWS, POSITIONS].view(len(ROWS), layer.query.shape[1], -1)  # [N, H, dv]
        torch.testing.assert_close(attention_output(layer, POSITIONS), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_masks_are_built_as_for_the_attention_that_is_captured(kind):
    model = decoder(kind, "eager")
    mask = torch.ones(2, PREFIX + TEXT, dtype=torch.long)
    mask[0, :2] = 0  # left padding in row 0
    plain = read(model, prefilled(model), attention_mask=mask).logits
    model.set_attn_implementation(capture_name("eager"))
    assert torch.equal(read(model, prefilled(model), attention_mask=mask).logits, plain)


def test_only_the_layers_asked_for_are_kept_and_nothing_after_the_capture():
    model = decoder("llama", capture_name("sdpa"))
    with capture([1], ROWS, POSITIONS, TEXT) as layers:
        read(model, prefilled_outside(model))
    assert list(layers) == [1]
    before = layers[1].key
    read(model, prefilled(model))
    assert layers[1].key is before


def prefilled_outside(model):
    """A prefix made by a pass that no capture sees."""
    cache = DynamicCache(config=model.config)
    for layer in range(2):
        cache.update(torch.randn(2, 2, PREFIX, 8), torch.randn(2, 2, PREFIX, 8), layer)
    return cache


def test_two_models_are_captured_one_after_the_other_without_mixing():
    student, teacher = decoder("llama", capture_name("sdpa")), decoder("qwen3", capture_name("sdpa"))
    caches = prefilled(student), prefilled(teacher)
    with capture([0], ROWS, POSITIONS, TEXT) as ours:
        read(student, caches[0])
    with capture([1], ROWS, POSITIONS, TEXT) as theirs, torch.no_grad():
        read(teacher, caches[1])
    assert (list(ours), list(theirs)) == ([0], [1])
    assert ours[0].query.requires_grad
    assert not theirs[1].query.requires_grad


def checkpointed(reentrant):
    model = decoder("llama", capture_name("sdpa"))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def whole(model):
    return model(inputs_embeds=torch.full((2, TEXT, 32), 0.1).cumsum(1).requires_grad_(), use_cache=False)


def test_activation_checkpointing_records_once_and_keeps_the_gradient():
    grads = []
    for model in (decoder("llama", capture_name("sdpa")), checkpointed(reentrant=False)):
        with capture([0, 1], ROWS, POSITIONS, TEXT) as layers:
            whole(model)
        kept = layers[1].query
        (layers[1].query.square().sum() + layers[0].key.square().sum()).backward()
        assert layers[1].query is kept
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("how", ["without gradients", "with gradients", "activation checkpointing"])
def test_an_open_capture_holds_queries_of_its_rows_alone_and_no_view_of_more(how):
    model = checkpointed(reentrant=False) if "checkpointing" in how else decoder("llama", capture_name("sdpa"))
    with capture([0, 1], ROWS, POSITIONS, TEXT) as layers, torch.set_grad_enabled(how != "without gradients"):
        whole(model)
        held = [[one.untyped_storage().nbytes() // 4 for one in (i.query, i.key, i.value)] for i in layers.values()]
    assert held == [[len(ROWS) * 4 * 8, 2 * 2 * TEXT * 8, 2 * 2 * TEXT * 8]] * 2  # [N, H, d]; [B, Hkv, T, d] twice


def test_reentrant_checkpointing_is_refused_because_it_would_cut_the_gradient():
    with pytest.raises(RuntimeError, match="use_reentrant"), capture([0], ROWS, POSITIONS, TEXT):
        whole(checkpointed(reentrant=True))


def test_a_capture_around_two_passes_is_refused():
    model = decoder("llama", capture_name("sdpa"))
    with pytest.raises(RuntimeError, match="ran twice"), capture([0], ROWS, POSITIONS, TEXT):
        read(model, prefilled(model))


@pytest.mark.parametrize(("attention", "layers"), [("sdpa", [0]), (capture_name("sdpa"), [0, 7])])
def test_a_layer_that_hands_out_nothing_is_an_error(attention, layers):
    model = decoder("llama", attention)
    missing = pytest.raises(RuntimeError, match=rf"\[{layers[-1]}\] handed out no attention")
    with missing, capture(layers, ROWS, POSITIONS, TEXT):
        whole(model)


def test_a_sliding_window_shorter_than_the_row_is_refused():
    torch.manual_seed(0)
    config = MistralConfig(**GROUPED, sliding_window=3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=capture_name("sdpa"))
    with pytest.raises(RuntimeError, match="only the last 3 of 4 tokens"), capture([0], ROWS, POSITIONS, TEXT):
        whole(model)


def test_an_implementation_without_a_twin_is_refused_with_what_to_use_instead():
    with pytest.raises(ValueError, match="sdpa, eager, flex_attention, flash_attention_2"):
        capture_name("flash_attention_3")


def one_row(q, k, v, softmax_scale=None, causal=False):
    """Flash attention's own mask: the last query sees every key. [Q, H, d], [S, Hkv, d] -> [Q, H, d]."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if causal else None
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=softmax_scale).transpose(0, 1)


@pytest.fixture
def flash(monkeypatch):
    """All of transformers' flash path but its kernels, which are torch's here, and the names they were asked by."""
    asked = []

    def rows(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        return torch.stack([one_row(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def ragged(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        ends = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
        return torch.cat([one_row(q[a:b], k[c:d], v[c:d], softmax_scale, causal) for (a, b), (c, d) in ends])

    def kernels(implementation, *_, **__):
        asked.append(implementation)
        return (
            rows,
            ragged,
            None,
            modeling_flash_attention_utils._pad_input,
            modeling_flash_attention_utils._unpad_input,
        )

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", kernels)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    return asked


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_flash_attention_reads_the_same_and_leaves_the_same_behind(kind, padded, flash):
    mask = torch.ones(2, PREFIX + TEXT, dtype=torch.long)
    mask[0, :2] = 0 if padded else 1  # left padding in row 0
    found = {}
    for attention in ("sdpa", "flash_attention_2"):
        model = decoder(kind, capture_name(attention))
        cache = prefilled(model)
        with capture([1], ROWS, POSITIONS, TEXT) as layers:
            logits = read(model, cache, attention_mask=mask).logits
        layers[1].query.square().sum().backward()
        grad = next(p.grad for p in model.parameters() if p.grad is not None)
        found[attention] = (logits, layers[1].query, layers[1].key, layers[1].value, grad)
    assert set(flash) == {"flash_attention_2"}
    torch.testing.assert_close(found["flash_attention_2"], found["sdpa"], atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
def test_flash_attentions_own_kernel_reads_the_same_and_leaves_the_same_behind():
    pytest.importorskip("flash_attn")
    found = {}
    for attention in ("sdpa", "flash_attention_2"):
        model = decoder("llama", capture_name(attention)).to("cuda", torch.bfloat16)
        ids = torch.randint(0, 50, (2, TEXT), generator=torch.Generator().manual_seed(2)).cuda()
        with capture([1], ROWS.cuda(), POSITIONS.cuda(), TEXT) as layers:
            logits = model(input_ids=ids).logits
        found[attention] = (logits, layers[1].query, layers[1].key, layers[1].value)
    torch.testing.assert_close(found["flash_attention_2"], found["sdpa"], rtol=0, atol=5e-2)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_moved_queries_are_those_of_the_position_they_are_moved_to(kind):
    model = decoder(kind, capture_name("sdpa"))
    found = []
    for start in (2, 9):
        with capture([0], ROWS, POSITIONS, TEXT) as layers, torch.no_grad():
            ids = torch.arange(2 * TEXT).view(2, TEXT)
            model(input_ids=ids, position_ids=start + torch.arange(TEXT).expand(2, TEXT), use_cache=False)
        found.append(layers[0].query)
    moved = query_mover(model.base_model.rotary_emb)(found[0], torch.tensor([7, 7, 7]))
    assert (found[0] - found[1]).abs().max() > 0.1
    torch.testing.assert_close(moved, found[1], atol=1e-5, rtol=1e-4)
