"""Captured hidden states are what transformers itself hands out, with the gradient that belongs to them."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
)

from mmkd.models.hidden_capture import capture_hidden, final_norm

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "opt": OPTConfig(vocab_size=50, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4),
    "bloom": BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4),
}
ROWS, POSITIONS = torch.tensor([1, 0, 0]), torch.tensor([2, 3, 0])
IDS = torch.arange(8).view(2, 4)


def model_of(kind, attention="eager"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_captured_states_are_those_of_the_model_at_the_rows_asked_for(kind):
    model = model_of(kind)
    expected = model(input_ids=IDS, output_hidden_states=True).hidden_states  # embeddings, then the layers
    decoder = model.get_decoder()
    with capture_hidden(decoder, [0, 1, 2], ROWS, POSITIONS) as found:
        last = decoder(input_ids=IDS).last_hidden_state
    assert sorted(found) == [0, 1, 2]
    for layer in (0, 1):  # transformers hands out the last one after the norm
        torch.testing.assert_close(found[layer], expected[layer + 1][ROWS, POSITIONS])
    torch.testing.assert_close(final_norm(decoder)(found[2]), last[ROWS, POSITIONS])


def test_sdpa_works_too_and_nothing_stays_on_the_model():
    model = model_of("llama", "sdpa")
    with capture_hidden(model.model, [1], ROWS, POSITIONS) as found:
        model(input_ids=IDS)
    before = found[1].clone()
    model(input_ids=IDS + 1)
    assert torch.equal(found[1], before)
    assert found[1].shape == (3, 32)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_an_error_too():
    model = model_of("llama")
    with pytest.raises(KeyError), capture_hidden(model.model, [1], ROWS, POSITIONS):
        raise KeyError("x")
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_keeps_the_gradient(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = model_of("llama")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.train()
        embeds = model.get_input_embeddings()(IDS)
        with capture_hidden(model.model, [0, 1], ROWS, POSITIONS) as found:
            model(inputs_embeds=embeds, use_cache=False)
        (found[0].sum() + found[1].square().sum()).backward()
        gradients.append([p.grad for p in model.model.layers[:2].parameters()])
        assert model.model.layers[2].mlp.up_proj.weight.grad is None
    torch.testing.assert_close(*gradients)


def test_two_passes_or_none_are_refused():
    model = model_of("llama")
    with capture_hidden(model.model, [1], ROWS, POSITIONS):
        model(input_ids=IDS)
        with pytest.raises(RuntimeError, match="layer 1 ran twice"):
            model(input_ids=IDS)
    with pytest.raises(RuntimeError, match=r"\[1\] did not run"), capture_hidden(model.model, [1], ROWS, POSITIONS):
        pass
