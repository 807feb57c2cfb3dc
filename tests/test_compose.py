"""Any tower, projector and decoder: composed, cut, listed, loaded; and equal to LLaVA where LLaVA is what it is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    AutoTokenizer,
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from mmkd.compose import Composed, compose, cut_layers, load, parameter_table
from mmkd.config.schema import StudentSection
from mmkd.errors import ConfigError
from mmkd.evaluate.loading import load as to_be_asked
from mmkd.train.features import tower_hash

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, num_hidden_layers=6, num_key_value_heads=2, initializer_range=0.2)


def save_decoder(folder: Path, config: PreTrainedConfig = LLAMA) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Auto.from_config(config)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    save_decoder(folder)
    return folder


def section(decoder: Path, language: dict | None = None, vision: dict | None = None, **student) -> StudentSection:
    return StudentSection.model_validate(
        {
            "vision": {"source": "timm:test_vit", "image_size": 32, "pretrained": False} | (vision or {}),
            "language": {"source": f"hf:{decoder}"} | (language or {}),
            "template": "qa",
        }
        | student
    )


def ask(composed: Composed, *images: Image.Image, tokens: int | None = None, **settings) -> torch.Tensor:
    """Logits of the first answer token, through the processor."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "what?"}]
    text = composed.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = composed.processor(images=list(images), text=text, voco_tokens=tokens)
    out = composed.model.eval().generate(
        **inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True, **settings
    )
    return out.logits[0]


def picture(width: int = 40, height: int = 40, color: str = "red") -> Image.Image:
    image = Image.new("RGB", (width, height), color)
    image.paste("yellow", (4, 4, 20, 12))
    return image


# --- LLaVA ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_clip_with_llama_gives_llavas_logits_on_the_same_weights(tmp_path, decoder):
    torch.manual_seed(1)
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
    )
    clip.save_pretrained(tmp_path)
    llama = LlamaForCausalLM.from_pretrained(decoder)
    composed = compose(section(decoder, vision={"source": f"hf:{tmp_path}", "pretrained": True}))
    model, image_id = composed.model.eval(), composed.model.config.image_token_id

    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=clip.config, text_config=llama.config, image_token_id=image_id)
    ).eval()
    llava.model.vision_tower.load_state_dict(clip.state_dict())
    llava.model.language_model.load_state_dict(llama.model.state_dict())
    llava.lm_head.load_state_dict(llama.lm_head.state_dict())
    model.projector.load_state_dict(llava.model.multi_modal_projector.state_dict())

    pixels, n = torch.randn(2, 3, 32, 32), 16
    ids = torch.tensor([[256, *[image_id] * n, 5, 6, 7], [256, 8, *[image_id] * n, 9, 10]])
    mask = torch.ones_like(ids)
    expected = llava(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    found = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = model(input_ids=ids, attention_mask=mask, pixel_values=pixels.flip(0)).logits
    assert (other - expected).abs().max() > 1e-2  # the picture does count


# --- every combination ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [[27, 27], [3, 5]])
@pytest.mark.parametrize("kind", ["linear", "mlp", "pixel_shuffle", "average_pool", "resampler"])
def test_every_projector_serves_odd_grids_and_grids_that_are_not_square(decoder, kind, grid):
    composed = compose(
        section(
            decoder,
            {"keep_layers": 1},
            {"grid": grid},
            projector={"kind": kind, "queries": 6, "heads": 4},
            voco={"tokens": 2},
        )
    )
    rows, cols = grid
    merged = -(-rows // 2) * -(-cols // 2)
    n = {"pixel_shuffle": merged, "average_pool": merged, "resampler": 6}.get(kind, rows * cols)
    assert composed.processor.image_tokens == composed.model.config.image_tokens == n
    for tokens in (None, 2):
        assert ask(composed, picture(), picture(80, 20), tokens=tokens).isfinite().all()


def test_an_image_may_be_a_path_and_a_message_may_name_it(decoder, tmp_path):
    processor = compose(section(decoder)).processor
    picture().save(tmp_path / "cat.png")
    expected = processor(images=picture())["pixel_values"]
    for path in (tmp_path / "cat.png", str(tmp_path / "cat.png")):
        assert torch.equal(processor(images=path)["pixel_values"], expected)
    named = {"type": "image", "path": str(tmp_path / "cat.png")}
    message = [{"role": "user", "content": [named, {"type": "text", "text": "what is it"}]}]
    inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected)


def test_what_is_no_image_and_videos_are_refused(decoder):
    processor = compose(section(decoder)).processor
    with pytest.raises(TypeError, match="not a int"):
        processor(images=[3])
    with pytest.raises(ValueError, match="several images"):
        processor(text="what is it", videos=[[picture()]])


@pytest.mark.parametrize(
    ("width", "height", "tiles"), [(40, 40, 1), (80, 40, 3), (40, 80, 3), (160, 40, 5), (64, 64, 5)]
)
def test_an_image_is_cut_into_tiles_of_its_shape_and_a_thumbnail(decoder, width, height, tiles):
    composed = compose(section(decoder, {"keep_layers": 1}, {"tiles": 4}, voco={"tokens": 2}))
    pixels, counts = composed.processor.image_tensors([picture(width, height)])
    assert counts == [tiles]
    assert pixels.shape == (tiles, 3, 32, 32)
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = composed.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    full = composed.processor(images=picture(width, height), text=text, voco_tokens=None)
    assert int((full["input_ids"] == composed.model.config.image_token_id).sum()) == tiles * 4
    whole = ask(composed, picture(width, height), tokens=None)
    assert whole.isfinite().all()
    if tiles > 1:
        assert (whole - ask(composed, picture(width, height, "blue"), tokens=None)).abs().max() > 0
        assert ask(composed, picture(width, height), picture(), tokens=1).isfinite().all()


def test_every_part_of_an_image_is_in_a_tile_where_the_processor_resizes_to_more_than_it_crops(tmp_path, decoder):
    """As DINOv2's: 256, of which the middle 224 are kept."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    image = Image.new("RGB", (64, 64), "blue")
    image.paste("red", (30, 0, 34, 64))  # on the seam
    vision = {"source": f"hf:{tmp_path}", "image_size": None}
    composed = compose(section(decoder, vision=vision | {"tiles": 4}))
    pixels, (count,) = composed.processor.image_tensors([image])
    assert pixels.shape == (count, 3, 32, 32) == (5, 3, 32, 32)
    assert all((tile[0] > tile[2]).any() for tile in pixels[:4])
    assert composed.model.config.processor_hash == composed.processor.fingerprint
    one = compose(section(decoder, vision=vision)).processor.image_processor  # whole images are as the tower knows them
    assert one.size["shortest_edge"] == 48


# --- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kept", "rule"),
    [
        (2, [0, 1], "layers first 2 of 6"),
        ("every 2", [0, 2, 4], "layers every 2 of 6"),
        ("every 4", [0, 4], "layers every 4 of 6"),
        ([5, 1], [5, 1], "layers 5, 1 of 6"),
    ],
)
@torch.no_grad()
def test_a_cut_decoder_is_the_whole_one_with_layers_left_out(decoder, keep, kept, rule):
    whole = LlamaForCausalLM.from_pretrained(decoder).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    # The definition: the layers kept, one after the other.
    hidden = whole.model.embed_tokens(ids)
    rotary = whole.model.rotary_emb(hidden, torch.arange(5)[None])
    causal = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    for layer in kept:
        hidden = whole.model.layers[layer](hidden, attention_mask=causal, position_embeddings=rotary)
    expected = whole.lm_head(whole.model.norm(hidden))

    composed = compose(section(decoder, {"keep_layers": keep}))
    cut = composed.model.language_model.eval()
    assert composed.model.config.parts["language"]["cut"] == [rule]
    assert cut.config.num_hidden_layers == len(kept)
    torch.testing.assert_close(cut(input_ids=ids).logits[..., :300], expected, rtol=1e-5, atol=1e-5)
    longer = cut.generate(ids, max_new_tokens=3, do_sample=False)  # with a cache: every layer knows its place
    assert longer[0, 5] == expected[0, -1].argmax()


def test_what_a_config_lists_by_layer_is_cut_along():
    config = Gemma3TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, num_hidden_layers=6, sliding_window=8, pad_token_id=0
    )
    before = list(config.layer_types)
    model = Auto.from_config(config)
    cut_layers(model, [0, 5])
    assert model.config.layer_types == [before[0], before[5]]
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_gpt2_is_cut_too():
    model = Auto.from_config(GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2))
    assert cut_layers(model, "every 2") == "layers every 2 of 4"
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, pad_token_id=0).shape == (1, 5)


@pytest.mark.parametrize("keep", [7, 0, [0, 6], [-1], []])
def test_layers_that_are_not_there_are_refused(decoder, keep):
    with pytest.raises(ConfigError, match=r"layers 0\.\.5"):
        compose(section(decoder, {"keep_layers": keep}))


def test_a_layer_that_is_kept_twice_is_refused(decoder):
    with pytest.raises(ConfigError, match=r"keep_layers \[0, 2, 2\] names a layer twice"):
        compose(section(decoder, {"keep_layers": [0, 2, 2]}))


def test_a_student_cut_from_a_teacher_keeps_the_record_of_both_cuts(decoder, tmp_path):
    teacher = compose(section(decoder, {"keep_layers": 4}))
    teacher.model.save_pretrained(tmp_path)
    teacher.processor.save_pretrained(tmp_path)
    student = compose(
        StudentSection.model_validate({"init": str(tmp_path), "keep_layers": "every 2", "voco": {"tokens": 2}})
    )
    assert student.model.config.parts["language"]["cut"] == ["layers first 4 of 6", "layers every 2 of 4"]
    kept = student.model.language_model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(kept, teacher.model.language_model.model.layers[2].mlp.up_proj.weight)
    assert student.processor.voco_tokens == 2


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_names_each_part_with_its_source_size_and_dtype(decoder):
    composed = compose(section(decoder, {"keep_layers": "every 3"}, voco={"tokens": 2}), torch.bfloat16)
    composed.model.vision_tower.requires_grad_(False)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(parameter_table(composed.model))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.startswith("│")}
    assert {"vision", "projector", "language", "embeddings", "voco"} <= rows.keys()
    assert "timm:test_vit" in rows["vision"]
    assert "frozen" in rows["vision"]
    assert f"hf:{decoder}, layers every 3 of 6" in rows["language"]
    layer = sum(p.numel() for p in composed.model.language_model.model.layers[0].parameters())
    assert f"{(2 * layer + 32) / 1e6:.2f} M" in rows["language"]
    assert "bfloat16" in rows["projector"]
    assert all("float" in row for row in rows.values() if "part" not in row)


@torch.no_grad()
def test_compression_tokens_begin_as_wide_as_the_words_around_them(tmp_path):
    """Gemma's words are 16 times its table's rows at this width."""
    config = Gemma3TextConfig(**SIZES | {"hidden_size": 256}, num_hidden_layers=2, num_key_value_heads=2, head_dim=16)
    table = save_decoder(tmp_path, config).get_input_embeddings()
    words = table(torch.arange(SIZES["vocab_size"])).std()
    voco = compose(section(tmp_path, voco={"tokens": 16})).model.voco
    assert words > 10 * table.weight.std()
    assert voco.embedding.weight.std() == pytest.approx(float(words), rel=0.1)


@pytest.mark.parametrize(
    "change", [{"mass_bias": True}, {"embeddings": "shared"}, {"tokens": 3}, {"preset": "faithful"}]
)
@torch.no_grad()
def test_compression_tokens_begun_from_a_folder_are_what_the_config_says(decoder, tmp_path, change):
    """Its own where they are of the kind asked for; the model is saved as its config describes it."""
    compose(section(decoder, voco={"tokens": 2})).model.save_pretrained(tmp_path / "first")
    compose(section(decoder)).processor.save_pretrained(tmp_path / "first")
    learned = load(tmp_path / "first").model.voco.embedding.weight
    begun = compose(StudentSection.model_validate({"init": str(tmp_path / "first"), "voco": {"tokens": 2} | change}))
    voco = begun.model.voco
    kept = change.keys() <= {"mass_bias", "preset"}
    assert (voco.embedding.weight.shape == learned.shape and torch.equal(voco.embedding.weight, learned)) == kept
    if "mass_bias" in change:
        assert torch.equal(voco.mass_bias(2), torch.zeros(2))
    begun.model.save_pretrained(tmp_path / "second")
    begun.processor.save_pretrained(tmp_path / "second")
    again = load(tmp_path / "second").model.voco
    assert {name: tuple(t.shape) for name, t in again.state_dict().items()} == {
        name: tuple(t.shape) for name, t in voco.state_dict().items()
    }


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(decoder, tmp_path) -> Path:
    composed = compose(section(decoder, {"keep_layers": 1}, voco={"tokens": 2}))
    composed.model.save_pretrained(tmp_path)
    composed.processor.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "projector.linear_1.weight"


def test_a_whole_folder_loads_with_the_weights_it_was_saved_with(saved):
    loaded = load(saved).model.state_dict()
    for name, weight in load_file(saved / "model.safetensors").items():
        assert torch.equal(loaded[name], weight), name


def test_a_student_begun_in_bf16_is_the_folder_loaded_in_bf16(saved):
    """Rotary frequencies stay fp32 in both, and both share one feature cache."""
    begun, loaded = compose(StudentSection(init=str(saved)), torch.bfloat16), load(saved, torch.bfloat16)
    found, expected = (dict(side.model.named_buffers()) for side in (begun, loaded))
    assert {name: b.dtype for name, b in found.items()} == {name: b.dtype for name, b in expected.items()}
    assert found["language_model.model.rotary_emb.inv_freq"].dtype == torch.float32
    for name, buffer in found.items():
        assert torch.equal(buffer, expected[name]), name
    hashes = {tower_hash(side.model, side.processor.fingerprint) for side in (begun, loaded)}
    assert len(hashes) == 1


def test_a_student_begun_from_a_folder_ends_its_answers_where_that_folder_does(saved):
    """The folder's generation config may say other than its decoder's own, e.g. after a chat template was chosen."""
    settings = json.loads((saved / "generation_config.json").read_text())
    (saved / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 7, "max_new_tokens": 5}))
    composed = compose(StudentSection(init=str(saved)))
    begun = composed.model.generation_config
    assert (begun.eos_token_id, begun.max_new_tokens) == ([7, composed.processor.tokenizer.eos_token_id], 5)


@pytest.fixture
def chatting(decoder, tmp_path) -> Path:
    """A decoder whose tokenizer knows a chat's end, which is not its own."""
    shutil.copytree(decoder, tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path / "chatting")
    return tmp_path / "chatting"


CHAT = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]


def labelled(composed: Composed, messages=CHAT) -> str:
    ids, said = composed.processor.encode_turns(messages)
    return composed.processor.tokenizer.decode([token for token, flag in zip(ids, said, strict=True) if flag])


def test_generation_stops_where_the_template_ends_an_answer_and_where_the_decoder_ends_a_text(chatting, tmp_path):
    composed = compose(section(chatting, template="chatml"))
    assert labelled(composed) == "red<|im_end|>"
    own = json.loads((chatting / "generation_config.json").read_text())["eos_token_id"]
    end = composed.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert composed.model.generation_config.eos_token_id == [own, end]
    composed.model.save_pretrained(tmp_path / "made")
    composed.processor.save_pretrained(tmp_path / "made")
    assert to_be_asked(str(tmp_path / "made"), None, torch.device("cpu"), False).ends == {own, end}
    again = compose(StudentSection(init=str(tmp_path / "made")))
    assert again.model.generation_config.eos_token_id == [own, end]


THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def with_template(folder: Path, template: str | dict[str, str]) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_a_template_that_can_think_is_asked_for_answers_alone(chatting):
    assert labelled(compose(section(with_template(chatting, THINKING), template="default"))) == "red<|im_end|>"


def test_of_several_templates_of_a_tokenizer_the_default_one_is_taken_and_none_else_is_saved(chatting, tmp_path):
    with_template(chatting, {"default": THINKING, "tool_use": "{{ 'no' }}"})
    composed = compose(section(chatting, template="default"))
    assert labelled(composed) == "red<|im_end|>"
    composed.processor.save_pretrained(tmp_path / "made")
    assert not [path for path in (tmp_path / "made").iterdir() if path.is_dir()]
    assert labelled(Composed(composed.model, type(composed.processor).from_pretrained(tmp_path / "made"))) == (
        "red<|im_end|>"
    )
    (chatting / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="default"):
        compose(section(with_template(chatting, {"tool_use": "{{ 'no' }}", "rag": "{{ '' }}"}), template="default"))


def test_a_tensor_that_is_missing_is_named_instead_of_filled_with_random_weights(saved):
    rewrite(saved, lambda weights: weights.pop(NAME))
    with pytest.raises(ConfigError, match=rf"lacks: 1 tensors, {NAME}"):
        load(saved)


def test_a_tensor_that_the_model_does_not_have_is_named_instead_of_dropped(saved):
    rewrite(saved, lambda weights: weights.update(surplus=torch.zeros(1)))
    with pytest.raises(ConfigError, match="does not: 1 tensors, surplus"):
        load(saved)


def test_a_tensor_of_another_shape_is_named(saved):
    rewrite(saved, lambda weights: weights.update({NAME: torch.zeros(3, 3)}))
    with pytest.raises(ConfigError, match=rf"another shape: 1 tensors, {NAME}"):
        load(saved)


def test_a_folder_whose_config_asks_for_the_code_of_others_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(ConfigError, match="asks for a kernel of someone/kernel"):
        load(saved)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a folder that mmkd can load"):
        load(tmp_path)


def half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_text_config(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("text_config")
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "change",
    [
        half,
        without_text_config,
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
    ],
    ids=["half the weights", "no decoder", "a list", "no tokenizer"],
)
def test_a_folder_that_is_half_copied_or_no_model_is_refused_by_name_wherever_it_is_read(saved, change):
    change(saved)
    for read in (lambda: load(saved), lambda: to_be_asked(str(saved), None, torch.device("cpu"), False)):
        with pytest.raises(ConfigError, match=rf"{saved}"):
            read()


def test_a_model_that_lacks_a_tensor_is_not_asked_with_a_random_one(saved):
    rewrite(saved, lambda weights: weights.pop(NAME))
    with pytest.raises(ConfigError, match=rf"lacks: 1 tensors, {NAME}"):
        to_be_asked(str(saved), None, torch.device("cpu"), False)


def test_attention_that_a_decoder_cannot_use_is_refused(tmp_path):
    save_decoder(
        tmp_path, Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, num_hidden_layers=2, pad_token_id=0)
    )
    with pytest.raises(ConfigError, match=r"sdpa does not serve a gemma2 decoder.*Eager serves"):
        compose(section(tmp_path))
    assert ask(compose(section(tmp_path, attention="eager")), picture()).isfinite().all()
