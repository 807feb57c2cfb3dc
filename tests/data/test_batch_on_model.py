"""What the collator lays out is what the model reads: packed or not, with a dummy image or without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from mmkd.config.schema import RationalesSection
from mmkd.data.collate import Collator
from mmkd.data.rationales import views
from mmkd.models import MmkdConfig, MmkdForConditionalGeneration
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.teachers.reading import prefixes


@pytest.fixture(scope="module")
def model(processor) -> MmkdForConditionalGeneration:
    torch.manual_seed(0)
    config = MmkdConfig(
        vision_config=MmkdVisionConfig(library="timm", architecture="test_efficientnet", grid=[2, 2], image_size=32),
        text_config=LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        ),
        voco={"tokens": 2, "preset": "keep_sink", "embeddings": "separate", "mass_bias": False},
        image_token_id=processor.image_token_id,
        sink_token_id=processor.tokenizer.bos_token_id,
        image_tokens=4,
    )
    return MmkdForConditionalGeneration(config).eval()


def answer_hidden(model: MmkdForConditionalGeneration, batch: dict, tokens: int | None) -> dict[str, torch.Tensor]:
    """Hidden states of the answer tokens of each sample, by sample id."""
    features = model.image_features(batch["pixel_values"])
    [(_, prefix)] = prefixes(model, features, batch, [tokens])
    text = (batch["input_ids"], batch["attention_mask"], batch["position_ids"], batch["segment_ids"])
    hidden = model.read(prefix, *text)
    names, found = iter(batch["sample_ids"]), {}
    for row, segments in enumerate(batch["segment_ids"]):
        for segment in range(int(segments.max()) + 1):
            found[next(names)] = hidden[row][(segments == segment) & (batch["labels"][row] != -100)]
    return found


@pytest.fixture
def records(record, picture):
    """Five samples with 0 to 2 images and texts of different lengths."""
    images = [[picture(1)], [picture(2), picture(3)], [], [picture(4)], [picture(5)]]
    return [record(str(n), ("what is it?" * (1 + n % 3), f"it is {n}"), images=some) for n, some in enumerate(images)]


@pytest.mark.parametrize("tokens", [None, 1, 2], ids=["full", "k1", "k2"])
def test_a_packed_sample_reads_as_if_it_were_alone(model, processor, records, tokens):
    packed = Collator(processor, 150, packing=True)(records)
    assert 1 < len(packed["input_ids"]) < len(records)
    with torch.no_grad():
        together = answer_hidden(model, packed, tokens)
        for one in records:
            alone = answer_hidden(model, Collator(processor, 150)([one]), tokens)[one.id]
            assert len(alone) == len("it is 0") + 2
            torch.testing.assert_close(together[one.id], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [None, 2], ids=["full", "k2"])
def test_a_packed_neighbour_changes_nothing(model, processor, records, record, picture, tokens):
    other = [*records[:-1], record(records[-1].id, ("what is it?" * 2, "it is 9"), images=[picture(77)])]
    with torch.no_grad():
        one = answer_hidden(model, Collator(processor, 1000, packing=True)(records), tokens)
        two = answer_hidden(model, Collator(processor, 1000, packing=True)(other), tokens)
    for name in ("0", "1", "2", "3"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one["4"], two["4"], atol=1e-2)


@pytest.mark.parametrize("tokens", [None, 2], ids=["full", "k2"])
def test_a_twin_reads_the_images_of_its_sample_which_stand_in_the_batch_once(model, processor, records, tokens):
    told = [
        replace(one, turns=[one.turns[0], replace(one.turns[1], rationale=f"since {place}")]) if place != 1 else one
        for place, one in enumerate(records)
    ]
    apart = [replace(one, turns=view.turns) for one in told for view in views(one.turns, "separate")]
    shared = Collator(processor, 150, rationales=RationalesSection())(told)
    repeated = Collator(processor, 150)(apart)
    assert shared["sample_ids"] == repeated["sample_ids"]
    assert len(shared["pixel_values"]) == sum(len(one.images) for one in records) == len(repeated["pixel_values"]) - 3
    found = []
    for batch in (shared, repeated):
        model.zero_grad()
        [(_, prefix)] = prefixes(model, model.image_features(batch["pixel_values"]), batch, [tokens])
        text = (batch["input_ids"], batch["attention_mask"], batch["position_ids"], batch["segment_ids"])
        hidden = model.read(prefix, *text)[batch["labels"] != -100]  # [N, D]
        hidden.square().mean().backward()
        found.append(
            [hidden.detach(), *(p.grad for p in (*model.projector.parameters(), *model.vision_tower.parameters()))]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [None, 2], ids=["full", "k2"])
def test_a_batch_without_images_reads_as_text_alone_and_still_reaches_tower_and_projector(
    model, processor, record, tokens
):
    batch = Collator(processor, 100)([record("a", ("hello", "world"), images=[])])
    mixed = Collator(processor, 100)([record("a", ("hello", "world"), images=[]), record("b", ("hello", "you"))])
    model.zero_grad()
    text_only = answer_hidden(model, batch, tokens)["a"]
    torch.testing.assert_close(text_only, answer_hidden(model, mixed, tokens)["a"], rtol=1e-4, atol=1e-4)
    text_only.sum().backward()
    for part in (model.vision_tower, model.projector):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.requires_grad]
        assert gradients
        assert all(gradient is not None and not gradient.any() for gradient in gradients)
