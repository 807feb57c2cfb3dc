"""Counted costs against their definitions, on a tiny model whose every matrix is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmkd.errors import ConfigError
from mmkd.evaluate.costs import ask, costs_of, count_costs, encode, measure_latency, prefill
from mmkd.models import MmkdProcessor
from tests.evaluate.conftest import tiny_model

K, N = 4, 4  # of tiny_model: compression tokens, vision tokens


@pytest.fixture(scope="module")
def asked():
    model, processor = tiny_model(K)
    return model, processor, ask(processor, "what color is it?")


@pytest.fixture(scope="module")
def costs(asked):
    model, _, question = asked
    return count_costs(model, question, [1, 2, 4, "full"])


def decoder_flops(model, queries: int, keys: int) -> int:
    """Two operations a multiply-add of every matrix: projections, MLP, and q k^T and (softmax) v over all keys."""
    text = model.config.text_config
    width, heads = text.hidden_size, text.num_attention_heads
    head = width // heads
    projections = width * head * (2 * heads + 2 * text.num_key_value_heads)
    layer = queries * (projections + 3 * width * text.intermediate_size) + 2 * queries * keys * heads * head
    return 2 * text.num_hidden_layers * layer


def prompt(model, count: int, question) -> torch.Tensor:
    start = torch.tensor([[model.config.sink_token_id] + [model.config.image_token_id] * count])
    return torch.cat([start, question.text_ids], dim=1)  # [1, 1 + k + T]


@pytest.mark.parametrize("count", [1, 2, 4, "full"])
def test_prefill_and_decode_flops_are_those_of_the_formula(asked, costs, count):
    model, _, question = asked
    slots, text = (N if count == "full" else count), question.text_ids.shape[1]
    head = 2 * model.config.text_config.hidden_size * model.config.vocab_size
    cost = costs[str(count)]
    assert cost.prefill_flops == decoder_flops(model, text, 1 + slots + text) + head
    assert cost.decode_flops == decoder_flops(model, 1, 1 + slots + text + 1) + head


@pytest.mark.parametrize("count", [1, 2, 4, "full"])
def test_encoding_costs_the_tower_and_the_decoder_over_the_block(asked, costs, count):
    model, _, question = asked
    with FlopCounterMode(display=False) as tower, torch.no_grad():
        model.image_features(question.pixel_values)
    block = 1 + N + (0 if count == "full" else count)
    assert costs[str(count)].encode_flops == tower.get_total_flops() + decoder_flops(model, block, block)


@pytest.mark.parametrize("count", [1, 4])
def test_a_cold_question_costs_what_generate_does_for_its_first_token(asked, costs, count):
    model, _, question = asked
    ids = prompt(model, count, question)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=question.pixel_values,
            voco_tokens=count,
            max_new_tokens=1,
            do_sample=False,
        )
    assert counter.get_total_flops() == costs[str(count)].cold_flops


def test_kv_bytes_at_k_are_exactly_k_nths_of_full_vision(costs):
    full = costs["full"]
    assert full.image_tokens == N
    assert full.kv_bytes == 2 * 2 * 2 * 8 * N * 4  # K and V, layers, heads, width, tokens, bytes of fp32
    for count in (1, 2, 4):
        assert costs[str(count)].image_tokens == count
        assert costs[str(count)].kv_bytes * N == full.kv_bytes * count


def test_the_answer_of_the_counted_passes_is_that_of_the_model(asked):
    model, _, question = asked
    ids = prompt(model, 2, question)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=question.pixel_values, voco_tokens=2).logits[:, -1:]
        ours, _ = prefill(model, encode(model, question, 2), question.text_ids)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_a_tiled_student_is_costed_on_an_image_of_the_most_tiles_and_a_thumbnail(asked):
    model, processor, one = asked
    for tiles in (2, 4, 7):
        tiled = ask(
            MmkdProcessor(processor.image_processor, processor.tokenizer, processor.chat_template, N, tiles=tiles),
            "what color is it?",
        )
        assert len(tiled.pixel_values) == tiles + 1
        assert torch.equal(tiled.text_ids, one.text_ids)
    cost = count_costs(model, tiled, ["full"])["full"]
    assert cost.image_tokens == 8 * N


def test_every_round_times_every_count_and_ratios_compare_within_a_round(asked):
    model, _, question = asked
    times = measure_latency(model, question, [1, "full"], rounds=3, new_tokens=2)
    assert list(times) == ["1", "full"]
    assert all(len(t.prefill) == len(t.decode) == 3 and min(t.prefill + t.decode) > 0 for t in times.values())
    prefill, decode = times["1"].ratios(times["full"])
    assert prefill == [a / b for a, b in zip(times["1"].prefill, times["full"].prefill, strict=True)]
    assert len(decode) == 3


def test_a_folder_is_costed_in_plain_numbers_and_a_wrong_count_is_refused(folder):
    found = costs_of(folder, [1, "full"], rounds=1)
    assert found["1"]["kv_bytes"] * N == found["full"]["kv_bytes"]
    assert found["full"]["prefill_ms"] > 0
    with pytest.raises(ConfigError, match="1 to 4 or full"):
        costs_of(folder, [5])


def test_a_folder_in_bf16_is_costed_in_bf16(folder, tmp_path):
    model, processor = tiny_model(K)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert costs_of(tmp_path, [2], rounds=1)["2"]["kv_bytes"] * 2 == costs_of(folder, [2], rounds=1)["2"]["kv_bytes"]
