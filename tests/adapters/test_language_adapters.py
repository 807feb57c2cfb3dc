"""Language adapters: what they load, what they convert once, and what they refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from mmkd_adapters.language.gguf import GgufAdapter, converted
from mmkd_adapters.language.hf import HfLanguageAdapter
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from mmkd import assets
from mmkd.contracts import Spec, adapter
from mmkd.errors import AssetError, ConfigError

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=1),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=1),
    "phi": PhiConfig(**SMALL),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
}


def load(text, pretrained=True):
    spec = Spec.parse(text)
    return adapter("language", spec)().load(spec, pretrained=pretrained)


def save_tokenizer(folder):
    words = {f"w{i}": i for i in range(32)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_loaded_in_fp32_and_keeps_its_past_in_a_cache(name, tmp_path):
    saved = AutoModelForCausalLM.from_config(DECODERS[name], dtype=torch.bfloat16)
    saved.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    parts = load(f"hf:{tmp_path}")
    assert parts.model.dtype == torch.float32
    assert not parts.model.training
    for key, value in saved.state_dict().items():
        assert torch.equal(parts.model.state_dict()[key], value.float()), key
    ids = parts.tokenizer("w3 w4 w5 w6", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[3, 4, 5, 6]]
    cache = DynamicCache(config=parts.model.config)
    parts.model(ids[:, :3], past_key_values=cache, use_cache=True)
    whole = parts.model(ids).logits[:, -1]
    torch.testing.assert_close(parts.model(ids[:, 3:], past_key_values=cache).logits[:, -1], whole)


def test_local_folders_have_a_source_of_their_own(tmp_path):
    AutoModelForCausalLM.from_config(DECODERS["llama"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert load(f"local:{tmp_path}").model.config.model_type == "llama"


def test_without_weights_a_random_model_of_the_same_shape_is_built(tmp_path):
    DECODERS["llama"].save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = load(f"hf:{tmp_path}", pretrained=False).model
    assert model.config.hidden_size == 16
    assert model.lm_head.weight.std() > 0
    with pytest.raises(AssetError, match="cannot be loaded"):
        load(f"hf:{tmp_path}")


def test_a_model_with_a_recurrent_state_is_refused_before_its_weights_are_read(tmp_path):
    MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)  # no weights there
    with pytest.raises(ConfigError, match="is a mamba model, which does not keep its past in a transformers Cache"):
        load(f"hf:{tmp_path}")


def test_a_decoder_whose_logits_are_scaled_in_a_way_of_its_own_is_refused(tmp_path):
    HyperCLOVAXConfig(vocab_size=100, hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match="hyperclovax model, which scales its logits in a way of its own"):
        load(f"hf:{tmp_path}")


def test_a_model_that_is_no_decoder_is_refused(tmp_path):
    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="clip_vision_model model; AutoModelForCausalLM has no decoder"):
        load(f"hf:{tmp_path}")


def test_a_name_that_is_nowhere_is_an_asset_error():
    with pytest.raises(AssetError, match="hf:no/such-model cannot be loaded"):
        load("hf:no/such-model")


# --- gguf -------------------------------------------------------------------------------------------------------------

WIDTH, INNER, LAYERS = 64, 96, 2
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab", "cd", "Ġ"]


def write_gguf(path):
    """A small Llama as llama.cpp writes it, Q8_0 and F32, and what its matrices are."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def matrix(name, rows, cols):
        weight = (generator.standard_normal((rows, cols)) * 0.1).astype(np.float32)
        packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)

    found = {"model.embed_tokens.weight": matrix("token_embd.weight", len(WORDS), WIDTH)}
    matrix("output.weight", len(WORDS), WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = matrix(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        matrix(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_is_converted_whole_by_whichever_rank_comes_first(tmp_path, cache):
    expected = write_gguf(tmp_path / "tiny.gguf")
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        parts = load(f"gguf:{tmp_path / 'tiny.gguf'}")
    finally:
        torch.distributed.destroy_process_group()
    assert parts.model.state_dict().keys() >= expected.keys()


def test_a_gguf_file_becomes_an_ordinary_fp32_model(tmp_path, cache):
    expected = write_gguf(tmp_path / "tiny.gguf")
    parts = load(f"gguf:{tmp_path / 'tiny.gguf'}")
    assert parts.model.dtype == torch.float32
    for name, weight in expected.items():
        assert torch.equal(parts.model.state_dict()[name], torch.from_numpy(weight)), name
    assert all(p.requires_grad for p in parts.model.parameters())
    assert parts.tokenizer.convert_ids_to_tokens(parts.tokenizer("abcd").input_ids)[-2:] == ["ab", "cd"]
    parts.model.save_pretrained(tmp_path / "again")  # a model still called quantised refuses this
    assert not hasattr(parts.model.config, "quantization_config")


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path, cache):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    folder = load(f"gguf:{file}").notes["folder"]
    converted = {p: p.stat().st_mtime_ns for p in cache.rglob("*.safetensors")}
    assert len(converted) == 1
    assert load(f"gguf:{file}").notes["folder"] == folder
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.safetensors")} == converted
    file.unlink()
    write_gguf(file)
    assert load(f"gguf:{file}").notes["folder"] != folder


def test_ranks_that_load_at_the_same_time_convert_once(tmp_path, cache):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    spec = Spec.parse(f"gguf:{file}")
    with ThreadPoolExecutor(3) as pool:  # each thread opens the lock file anew, as a rank does
        folders = list(pool.map(lambda _: converted(spec, file), range(3)))
    assert len(set(folders)) == 1
    assert len(list(cache.rglob("*.safetensors"))) == 1


def test_what_a_killed_conversion_left_is_not_taken_for_a_model(tmp_path, cache):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    folder = converted(Spec.parse(f"gguf:{file}"), file)
    remains = folder.with_name(f".{folder.name}.part")
    folder.rename(remains)
    (remains / "model.safetensors").write_bytes(b"half")
    assert load(f"gguf:{file}").notes["folder"] == str(folder)
    assert not remains.exists()


def test_half_a_checkpoint_is_refused_rather_than_filled_with_random_weights(tmp_path):
    model = AutoModelForCausalLM.from_config(DECODERS["llama"])
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if "lm_head" not in name}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssetError, match=r"lack 1 tensors of the model, e\.g\. lm_head\.weight"):
        load(f"hf:{tmp_path}")


def test_half_copied_weights_are_refused_by_name(tmp_path):
    AutoModelForCausalLM.from_config(DECODERS["llama"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match=rf"hf:{tmp_path} cannot be loaded: .*incomplete"):
        load(f"hf:{tmp_path}")


@pytest.mark.parametrize("kept", [2, 1000, 60000])
def test_half_a_file_is_refused_and_leaves_nothing_behind(tmp_path, cache, kept):
    file = tmp_path / "broken.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(AssetError, match=r"broken\.gguf cannot be read as GGUF"):
        load(f"gguf:{file}")
    assert not [p for p in cache.rglob("*") if p.is_dir() and p.name != "gguf"]


def test_a_gguf_name_that_is_not_there_is_refused_with_the_nearest(cache):
    with pytest.raises(ConfigError, match="Did you mean smollm2-135m"):
        load("gguf:smollm2-135")
    with pytest.raises(AssetError, match=r"there is no file no/such\.gguf"):
        load("gguf:no/such.gguf")
    with pytest.raises(ConfigError, match="gguf keeps no revisions"):
        load("gguf:smollm2-135m@main")


def test_the_adapters_are_found_by_their_sources():
    assert adapter("language", Spec("hf", "x")) is HfLanguageAdapter
    assert adapter("language", Spec("gguf", "x")) is GgufAdapter


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_knows_the_capital_of_france():
    if not assets.is_present(assets.ASSETS["smollm2-135m"]):
        pytest.skip("the asset smollm2-135m is not in the cache; bring it with: mmkd assets")
    parts = load("gguf:smollm2-135m")
    assert parts.license == "Apache-2.0"
    prompt = parts.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = parts.model.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert "Paris" in parts.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
