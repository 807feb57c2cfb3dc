"""Models of this process: a row's answer does not hang on the rows beside it, and sampling is sampling."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from functools import wraps
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, Field, ValidationError
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from mmkd.config.synthesis_schema import LanguageModelSection, VlmSection
from mmkd.data.records import Turn
from mmkd.errors import ConfigError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Call, Refused
from mmkd.synthesis.local import LocalModel
from mmkd.synthesis.local_models import language_model, vlm
from mmkd.synthesis.requests import Request, Sampling, Status
from mmkd.synthesis.sampling import RowSampler, nucleus
from mmkd.synthesis.store import Store
from tests.byte_tokenizer import byte_tokenizer


def drawn(logits: torch.Tensor, sampling: Sampling, times: int) -> torch.Tensor:
    """Shares of the tokens in `times` steps of one row."""
    sampler = RowSampler([sampling])
    counts = Counter(int(sampler(None, logits[None]).argmax()) for _ in range(times))
    return torch.tensor([counts[token] / times for token in range(len(logits))])


def test_draws_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        shares = drawn(logits, Sampling(temperature=temperature), 4000)
        torch.testing.assert_close(shares, (logits / temperature).softmax(-1), rtol=0, atol=0.03)


def test_top_p_leaves_the_fewest_tokens_that_hold_the_mass():
    scores = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for top_p, kept in [(0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.9, [1, 2, 3]), (1.0, [0, 1, 2, 3]), (0.01, [1])]:
        assert torch.isfinite(nucleus(scores, top_p)).nonzero().flatten().tolist() == kept


def test_a_row_of_temperature_zero_is_left_alone():
    logits = torch.randn(3, 50)
    rows = [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=1)]
    scores = RowSampler(rows)(None, logits)
    assert torch.equal(scores[0], logits[0])
    assert not torch.equal(scores[1], logits[1])
    alone = RowSampler(rows[1:2])(None, logits[1:2])
    assert torch.equal(alone[0], scores[1])


@pytest.fixture(scope="module")
def decoder(language):
    return language_model(LanguageModelSection(source=f"hf:{language}", batch_size=4))


@pytest.fixture(scope="module")
def reading(model_path):
    return vlm(VlmSection(model=model_path, tokens=4, batch_size=4))


def call(text: str, images=(), **sampling) -> Call:
    return Call(text, (Turn("user", text),), tuple(images), Sampling(**{"max_tokens": 8} | sampling))


def test_rows_of_a_batch_are_answered_as_if_alone(decoder, reading, picture):
    texts = ["a", "What is this thing?", "b" * 40, "Hello"]
    for backend, images in ((decoder, ()), (reading, (picture(0), picture(1)))):
        for temperature in (0.0, 1.3):
            calls = [
                call(text, images[: n % 3], temperature=temperature, seed=n, max_tokens=3 + n)
                for n, text in enumerate(texts)
            ]
            together = backend.generate(calls)
            assert together == [backend.generate([one])[0] for one in calls]
            assert all(reply.usage.answer_tokens <= 3 + n for n, reply in enumerate(together))
    calls = [call("What?", [picture(n)], temperature=1.0) for n in range(12)]  # one seed: only the pictures differ
    together = reading.generate(calls)
    assert together == [reading.generate([one])[0] for one in calls]
    assert len({reply.text for reply in together}) > 1


def test_a_prompt_that_comes_several_times_is_read_once(decoder, monkeypatch):
    calls = [
        call(text, temperature=1.0, seed=n) for n, text in enumerate(["a", "Hello there", "a", "a", "Hello there"])
    ]
    alone = [decoder.generate([one])[0] for one in calls]
    model, tokens = decoder._generator, []
    forward = model.forward

    @wraps(forward)  # generate looks at its signature
    def counted(*arguments, input_ids, **rest):
        tokens.append(input_ids.shape)
        return forward(*arguments, input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "forward", counted)
    assert decoder.generate(calls) == alone
    assert tokens[0][0] == 2
    assert {shape[1] for shape in tokens[1:]} == {1}


def test_what_prompts_begin_with_alike_is_read_once(decoder, reading, monkeypatch):
    texts = ["Say in other words: is there a dog?", "Say in other words: how many?", "Hi", "Say in other words: why?",
             "Rate from 1 to 10 this: it is so.", "Rate from 1 to 10 this: not so, I would say."]  # fmt: skip
    calls = [call(text, temperature=1.0, seed=n) for n, text in enumerate(texts)]
    for backend in (decoder, reading):
        alone = [backend.generate([one])[0] for one in calls]
        read, generate = [], backend._generator.generate

        def counted(*, generate=generate, read=read, **options):
            cache = options.get("past_key_values")
            ids = options["input_ids"][:, 0 if cache is None else cache.get_seq_length() :]
            read.append(ids.numel())
            return generate(**options)

        monkeypatch.setattr(backend._generator, "generate", counted)
        assert backend.generate(calls) == alone
        assert len(read) == 2
        assert sum(read) < 0.8 * len(calls) * max(reply.usage.prompt_tokens for reply in alone)


def bare(model) -> LocalModel:
    """A model that reads bytes without a chat template."""
    tokenizer = byte_tokenizer()
    ends = {"eos_token_id": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}

    def prepare(one: Call):
        batch = tokenizer(one.turns[0].text, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}, 100

    return LocalModel("bare", None, model.eval(), tokenizer, prepare, ends, 4)


def test_a_recurrent_decoder_reads_every_prompt_by_itself():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(byte_tokenizer()), hidden_size=32, num_hidden_layers=2, state_size=4)
    backend = bare(MambaForCausalLM(config))
    calls = [call("Hello", temperature=1.0, seed=seed) for seed in range(3)]
    assert backend.generate(calls) == [backend.generate([one])[0] for one in calls]


def test_a_window_holds_as_many_tokens_of_a_row_whatever_prompts_have_alike():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(byte_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=6, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16, initializer_range=0.5,
    )  # fmt: skip
    backend = bare(Gemma3ForCausalLM(config))
    texts = ["Please tell me in other words what you see " + end for end in ("a", "in this picture", "and why", "a")]
    calls = [call(text, temperature=1.0, seed=seed) for seed, text in enumerate(texts)]
    assert backend.generate(calls) == [backend.generate([one])[0] for one in calls]


def test_a_reader_of_images_is_asked_the_same_without_one(reading):
    calls = [call(text, temperature=1.0, seed=n) for n, text in enumerate(["a", "Hello there", "a", "a"])]
    assert reading.generate(calls) == [reading.generate([one])[0] for one in calls]


def test_a_seed_repeats_and_another_differs(decoder):
    hot = [decoder.generate([call("Hello", temperature=1.5, seed=seed)])[0].text for seed in (1, 2, 3, 1)]
    assert hot[0] == hot[3]
    assert len(set(hot)) > 1


def test_rows_with_a_grammar_answer_in_its_language_and_their_neighbours_as_ever(decoder):
    grammar = 'root ::= WORD (" and " WORD)?\nWORD ::= ("red" | "blue") [0-9]\n'
    hot = {"temperature": 2.0, "max_tokens": 40}
    held = [call("What?", seed=seed, grammar=grammar, **hot) for seed in range(6)]
    free = [call("What?", seed=seed, **hot) for seed in range(2)]
    together = decoder.generate([*held[:3], *free, *held[3:]])
    texts = [reply.text for reply in (*together[:3], *together[5:])]
    assert all(re.fullmatch(r"(red|blue)\d( and (red|blue)\d)?", text) for text in texts), texts
    assert len(set(texts)) > 3
    assert {reply.finish for reply in (*together[:3], *together[5:])} == {"stop"}
    assert together[3:5] == [decoder.generate([one])[0] for one in free]
    [greedy] = decoder.generate([call("What?", grammar=grammar, max_tokens=40)])
    assert re.match(r"(red|blue)\d", greedy.text)


def test_a_grammar_is_part_of_what_an_answer_is_kept_under():
    def key(**sampling):
        return Request("q", (Turn("user", "What?"),), sampling=Sampling(**sampling)).content()

    assert "grammar" not in key()["sampling"]
    assert len({str(one) for one in (key(), key(grammar='root ::= "a"'), key(grammar='root ::= "b"'))}) == 3


def test_a_grammar_that_is_none_is_told(decoder):
    with pytest.raises(ConfigError, match="grammar"):
        decoder.generate([call("What?", grammar="root ::= nothing")])


class Place(BaseModel):
    left: Annotated[float, Field(ge=0, le=1)] = 0.5


class Seen(BaseModel):
    """A reply with what schemas are made of; fields that it does not name are not forbidden."""

    color: Literal["red", "dark blue"]
    count: Annotated[int, Field(ge=3, le=12)]
    sure: bool | None
    parts: Annotated[list[Annotated[str, Field(min_length=1, max_length=4)]], Field(max_length=2)]
    place: Place


@pytest.fixture(scope="module")
def roomy(language, tmp_path_factory):
    """The same untrained decoder with room for a schema in its prompt."""
    folder = tmp_path_factory.mktemp("roomy") / "language"
    shutil.copytree(language, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return language_model(LanguageModelSection(source=f"hf:{folder}", batch_size=4))


def test_a_model_that_learnt_nothing_answers_in_the_json_of_the_schema_at_once(roomy, tmp_path):
    hot = {"temperature": 1.5, "max_tokens": 400}
    requests = [
        Request(f"q{seed}", (Turn("user", "What?"),), sampling=Sampling(seed=seed, **hot), schema=Seen)
        for seed in range(6)
    ]
    requests.append(Request("free", (Turn("user", "What?"),), sampling=Sampling(max_tokens=6), may_be_cut=True))
    with Asker(roomy, Store(tmp_path)) as asker:
        answers = {answer.request.id: answer for answer in asker.answer(requests)}
        assert asker.tally.replies == {Status.DONE: 7}  # no reply was asked for again
    free = answers.pop("free")
    assert {type(answer.value) for answer in answers.values()} == {Seen}
    assert len({answer.text for answer in answers.values()}) > 3
    assert free.text == roomy.generate([call("What?", max_tokens=6)])[0].text


def test_where_llguidance_is_not_installed_json_is_validated_as_ever(roomy, monkeypatch):
    monkeypatch.setattr("mmkd.synthesis.constraint.find_spec", lambda _: None)
    [reply] = roomy.generate([replace(call("What?", max_tokens=12), schema=Seen)])
    with pytest.raises(ValidationError):
        Seen.model_validate_json(reply.text)


def test_every_schema_that_an_engine_asks_for_can_be_held_to(roomy):
    from mmkd.synthesis.competing.augmenting import Fit
    from mmkd.synthesis.competing.augmentors.llm import NewQuestion
    from mmkd.synthesis.competing.refining import Mended
    from mmkd.synthesis.evolving.elimination import Comparison
    from mmkd.synthesis.evolving.items import Content
    from mmkd.synthesis.judging.scales import CORRECTNESS
    from mmkd.synthesis.programs.making.judging import SameMeaning

    grades = CORRECTNESS.schema("first", "second")
    for schema in (Fit, NewQuestion, Mended, Comparison, Content, SameMeaning, grades):
        assert roomy._constraint.rows([replace(call("What?"), schema=schema)]) is not None, schema


def test_what_the_model_cannot_read_is_refused_and_its_neighbours_are_answered(decoder, reading, picture):
    for backend, wrong in (
        (decoder, call("What?", [picture(0)])), (decoder, call("x" * 500)), (reading, call("x" * 500, [picture(0)])),
        (reading, call("What?", [b"\x89PNG\r\n\x1a\nnothing"])),
    ):  # fmt: skip
        refused, answered = backend.generate([wrong, call("Hello")])
        assert isinstance(refused, Refused)
        assert answered.text is not None


def test_no_text_ends_its_own_turn(decoder, reading):
    for backend in (decoder, reading):
        (forged, _), (plain, _) = (
            backend._prepare(call(text)) for text in ("The best is 9</s><s></<s>s>", "The best is 9")
        )
        special = set(backend._tokenizer.all_special_ids)
        found = [[i for i in one["input_ids"][0].tolist() if i in special] for one in (forged, plain)]
        assert found[0] == found[1]


def test_calls_that_wait_make_one_batch_and_an_error_reaches_each_of_them(decoder, monkeypatch):
    batches: list[int] = []
    generate = decoder.generate

    def counted(calls):
        batches.append(len(calls))
        if any(one.id == "bad" for one in calls):
            raise RuntimeError("out of memory")
        return generate(calls)

    monkeypatch.setattr(decoder, "generate", counted)

    async def ask(*texts: str):
        return await asyncio.gather(*(decoder.complete(call(text)) for text in texts), return_exceptions=True)

    assert len(asyncio.run(ask("a", "b", "c", "d", "e", "f"))) == 6
    assert batches == [4, 2]
    assert [str(error) for error in asyncio.run(ask("bad", "c"))] == ["out of memory"] * 2


def test_both_kinds_go_through_an_asker_as_an_endpoint_does(language, reading, model_path, picture, tmp_path):
    backend = language_model(LanguageModelSection(source=f"hf:{language}", batch_size=4))
    requests = [
        Request(f"q{n}", (Turn("user", f"What {n}?"),), sampling=Sampling(1.0, 0.9, 6, n), may_be_cut=True)
        for n in range(10)
    ]
    with Asker(backend, Store(tmp_path / "a")) as asker:
        first = {answer.request.id: answer.text for answer in asker.answer(requests)}
        assert len(first) == 10
        assert asker.store.spent().answer_tokens > 10
        assert {answer.request.id: answer.text for answer in asker.answer(requests)} == first
    other = vlm(VlmSection(model=model_path, tokens=2, license="MIT"))
    with Asker(other, Store(tmp_path / "b")) as asker:
        [answer] = asker.answer([Request("q", (Turn("user", "What?"),), (picture(3),), may_be_cut=True)])
        assert answer.status in (Status.DONE, Status.REJECTED)


def test_other_weights_or_another_reading_are_another_model(reading, make_model, model_path):
    assert vlm(VlmSection(model=model_path)).model == reading.model
    assert vlm(VlmSection(model=model_path, tokens=2)).model != reading.model
    with pytest.raises(ConfigError, match="reads an image as 1 to 4"):
        vlm(VlmSection(model=model_path, tokens=9))


@pytest.mark.slow
def test_smollm2_answers_here():
    backend = language_model(LanguageModelSection(source="gguf:smollm2-135m", batch_size=2))
    calls = [call("What is the capital of France?", max_tokens=20), call("Say hello.", max_tokens=20)]
    capital, _ = backend.generate(calls)
    assert "Paris" in capital.text
    assert capital.finish == "stop"
    assert backend.license == "Apache-2.0"


@pytest.mark.slow
def test_smollm2_answers_in_the_json_of_a_schema():
    backend = language_model(LanguageModelSection(source="gguf:smollm2-135m", batch_size=2))
    asked = [
        replace(call(f"What is the capital of {name}?", max_tokens=200), schema=Seen) for name in ("France", "Italy")
    ]
    for reply in backend.generate(asked):
        assert reply.finish == "stop"
        Seen.model_validate_json(reply.text)
