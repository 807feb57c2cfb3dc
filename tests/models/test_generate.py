"""Stock `generate` on images: greedy, sampled, by beams, streamed, in batches, from pixels, features or a cache."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import IMAGE, SINK, K, pixels, prompt
from transformers.generation.streamers import BaseStreamer

# A random model may well answer with a placeholder, which a whole forward would take for an image.
GREEDY = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE, SINK]}


@pytest.fixture(scope="module")
def model():
    return tiny.build()


@pytest.fixture(scope="module")
def biased():
    return tiny.build(mass_bias=True, preset="faithful")


def whole_logits(model, sequences: torch.Tensor, mask: torch.Tensor, new: int, **images) -> torch.Tensor:
    """Logits [B, new, V] of the last `new` tokens, from one forward of everything."""
    mask = torch.cat([mask, torch.ones(len(mask), sequences.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)
    return model(input_ids=sequences, attention_mask=mask, **images).logits[:, -new - 1 : -1].float()


@pytest.mark.parametrize("k", [1, K, None])
@pytest.mark.parametrize("which", ["model", "biased"])
def test_token_by_token_decoding_equals_full_forwards_for_64_tokens(which, k, request):
    model = request.getfixturevalue(which)
    inputs = prompt(4 if k is None else k, [5, 6, 7], [8])
    images = {"pixel_values": pixels(2), "voco_tokens": k}
    out = model.generate(
        **inputs, **images, **GREEDY, max_new_tokens=64, output_logits=True, return_dict_in_generate=True
    )
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + 64
    expected = whole_logits(model, out.sequences, inputs["attention_mask"], 64, **images)
    torch.testing.assert_close(torch.stack(out.logits, dim=1).float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beams", [1, 2])
def test_with_score_biases_a_question_alone_is_answered_as_in_a_padded_batch(biased, beams):
    settings = {"max_new_tokens": 6, "num_beams": beams, **GREEDY}
    cache = biased.compress(pixels(1))
    batch = biased.generate(**prompt(K, [5, 6, 7], [8]), voco_cache=cache, **settings)
    for row, question in enumerate(([5, 6, 7], [8])):
        alone = biased.generate(**prompt(K, question), voco_cache=cache, **settings)
        assert alone[0, -6:].tolist() == batch[row, -6:].tolist()


def test_sampling_draws_the_same_from_pixels_and_from_a_cache_and_other_tokens_with_another_seed(model):
    inputs = prompt(K, [5, 6, 7], [8, 9])
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 0, "max_new_tokens": 12, "eos_token_id": None}
    drawn = []
    cache = model.compress(pixels(2))
    for images in ({"pixel_values": pixels(2), "voco_tokens": K}, {"voco_cache": cache}):
        torch.manual_seed(7)
        drawn.append(model.generate(**inputs, **images, **settings).tolist())
    assert drawn[0] == drawn[1]
    assert model.generate(**inputs, voco_cache=cache, **settings).tolist() != drawn[0]
    narrow = model.generate(**inputs, voco_cache=cache, **{**settings, **GREEDY, "do_sample": True, "top_k": 1})
    assert narrow.tolist() == model.generate(**inputs, voco_cache=cache, max_new_tokens=12, **GREEDY).tolist()


@pytest.mark.parametrize("which", ["model", "biased"])
def test_a_beams_score_is_the_likelihood_of_its_tokens(which, request):
    model = request.getfixturevalue(which)
    inputs = prompt(K, [5, 6, 7], [8, 9])
    images = {"pixel_values": pixels(2), "voco_tokens": K}
    settings = {"max_new_tokens": 4, "length_penalty": 0.0, **GREEDY}
    out = model.generate(
        **inputs,
        **images,
        num_beams=3,
        num_return_sequences=2,
        **settings,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape[0] == 4
    length = inputs["input_ids"].shape[1]
    assert out.sequences[::2, :length].tolist() == inputs["input_ids"].tolist()
    twice = {k: v.repeat_interleave(2, dim=0) for k, v in images.items() if k == "pixel_values"} | {"voco_tokens": K}
    mask = inputs["attention_mask"].repeat_interleave(2, dim=0)
    logprobs = whole_logits(model, out.sequences, mask, 4, **twice).log_softmax(-1)
    found = logprobs.gather(2, out.sequences[:, -4:, None]).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores.float(), found, rtol=1e-3, atol=1e-3)
    greedy = model.generate(**inputs, **images, **settings)
    greedy_score = whole_logits(model, greedy, inputs["attention_mask"], 4, **images).log_softmax(-1)
    greedy_score = greedy_score.gather(2, greedy[:, -4:, None]).sum((1, 2))
    assert (found[::2] >= greedy_score - 1e-3).all()


def test_tokens_are_streamed_as_they_come(model):
    class Collector(BaseStreamer):
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    streamer = Collector()
    inputs = prompt(K, [5, 6, 7])
    out = model.generate(**inputs, voco_cache=model.compress(pixels(1)), streamer=streamer, max_new_tokens=5, **GREEDY)
    assert [piece[0] for piece in streamer.pieces[1:]] == out[0, -5:].tolist()  # the first piece is the prompt
    assert streamer.pieces[0][-3:] == [5, 6, 7]
    assert streamer.ended


@pytest.mark.parametrize("k", [2, None])
def test_a_row_answers_in_a_batch_as_it_does_alone(model, k):
    size = 4 if k is None else k
    questions = [(2, [5, 6, 7, 8]), (0, [9]), (1, [3, 4])]  # images, text
    longest = max(n * size + len(q) for n, q in questions)
    rows = [[SINK] + [IMAGE] * (n * size) + q for n, q in questions]
    ids = torch.tensor([[0] * (longest + 1 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest + 1 - len(row)) + [1] * len(row) for row in rows])
    images = pixels(3)
    together = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=images, voco_tokens=k, max_new_tokens=6, **GREEDY
    )
    for place, (row, own) in enumerate(zip(rows, (images[:2], None, images[2:]), strict=True)):
        alone = model.generate(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            pixel_values=own,
            voco_tokens=k if own is not None else None,
            max_new_tokens=6,
            **GREEDY,
        )
        assert together[place, -6:].tolist() == alone[0, -6:].tolist()


@pytest.mark.parametrize("k", [2, None])
def test_padding_on_the_right_gives_the_logits_of_padding_on_the_left(model, k):
    size = 4 if k is None else k
    images = {"pixel_values": pixels(2), "voco_tokens": k}
    left, right = (prompt(size, [5, 6, 7], [8], side=side) for side in ("left", "right"))
    a, b = (model(**inputs, **images).logits for inputs in (left, right))
    torch.testing.assert_close(a[left["attention_mask"].bool()], b[right["attention_mask"].bool()])


@pytest.mark.parametrize("k", [2, None])
def test_tower_features_stand_in_for_pixels(model, k):
    inputs = prompt(4 if k is None else k, [5, 6, 7], [8])
    seen = model.vision_tower(pixels(2))
    runs = []
    hook = model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    answers, logits = [], []
    for images in ({"tower_features": seen}, {"pixel_values": pixels(2)}):
        answers.append(model.generate(**inputs, **images, voco_tokens=k, max_new_tokens=4, **GREEDY).tolist())
        logits.append(model(**inputs, **images, voco_tokens=k).logits)
        assert len(runs) == 2 * ("pixel_values" in images)
    hook.remove()
    assert answers[0] == answers[1]
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize("k", [2, None])
def test_the_tiles_of_an_image_are_one_image(model, k):
    """Two images, of three tiles and of one: one block of 3n vision tokens and one of n."""
    tiles = torch.tensor([3, 1])
    sizes = [k, k] if k else [12, 4]
    ids = torch.tensor([[SINK] + [IMAGE] * sum(sizes) + [5, 6]])
    images = pixels(4)
    first = model.generate(
        input_ids=ids,
        pixel_values=images,
        image_tiles=tiles,
        voco_tokens=k,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    feats = model.image_features(images)
    parts = [feats[:3].flatten(0, 1), feats[3]]
    text = torch.tensor([[5, 6]])
    if k is None:
        embed = model.get_input_embeddings()
        sequence = torch.cat([embed(torch.tensor([SINK])), *parts, embed(text[0])])[None]
        hidden = model.decoder(inputs_embeds=sequence).last_hidden_state
    else:
        blocks = model.blocks(feats, [3, 1], [0, 0], [0, 0], 1, k)
        assert blocks.mask.sum(1).tolist() == [1 + 12 + k, 1 + 4 + k]
        assert blocks.positions[1, 0] == 1 + 12 + K
        hidden = model.read(model.prefix(blocks), text, torch.ones_like(text))
    torch.testing.assert_close(first.logits[0].double(), model.head(hidden)[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("where", ["call", "own settings"])
def test_settings_that_would_do_without_the_cache_change_no_answer(model, k, where, monkeypatch):
    inputs = {**prompt(4 if k is None else k, [5, 6, 7], [8]), "pixel_values": pixels(2), "voco_tokens": k}
    expected = model.generate(**inputs, **GREEDY, max_new_tokens=6)
    if where == "own settings":
        monkeypatch.setattr(model.generation_config, "use_cache", False)
    call = {"use_cache": False} if where == "call" else {}
    assert torch.equal(model.generate(**inputs, **GREEDY, **call, max_new_tokens=6), expected)


def test_prompts_that_do_not_fit_the_images_are_refused(model):
    with pytest.raises(ValueError, match="assisted decoding"):
        model.generate(**prompt(1, [5]), pixel_values=pixels(1), voco_tokens=1, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="no prompt names an image"):
        model.generate(**prompt(0, [5]), voco_cache=model.compress(pixels(1)))
    with pytest.raises(ValueError, match="placeholders"):
        model.generate(**prompt(3, [5]), pixel_values=pixels(1), voco_tokens=K)
    with pytest.raises(ValueError, match="2 image placeholders, the images 4"):
        model(**prompt(2, [5]), pixel_values=pixels(1))
    late = torch.tensor([[SINK, 5, IMAGE, IMAGE]])
    with pytest.raises(ValueError, match="then text"):
        model.generate(input_ids=late, pixel_values=pixels(1), voco_tokens=2)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        model.generate(**prompt(5, [5]), pixel_values=pixels(1), voco_tokens=5)
    with pytest.raises(ValueError, match="without compression tokens"):
        tiny.build(tokens=None).generate(**prompt(2, [5]), pixel_values=pixels(1), voco_tokens=2)
