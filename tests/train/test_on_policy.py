"""Steps whose answers the student samples itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from transformers import GenerationConfig

from mmkd.compose import compose, load
from mmkd.config.schema import Config, DataSection, OnPolicySection, StudentSection
from mmkd.data.loader import build_loader
from mmkd.errors import ConfigError
from mmkd.objectives import ReverseKL
from mmkd.teachers.live import SharedTeacher
from mmkd.teachers.reading import answer_batch, prefixes, read_outputs
from mmkd.train.on_policy import check_on_policy, is_on_policy, own_answers, stop_ids
from mmkd.train.task import DistillTask
from tests.byte_tokenizer import byte_tokenizer
from tests.train.conftest import save_tiny_model

GREEDY = OnPolicySection(temperature=1e-4, max_new_tokens=7)


@pytest.fixture(scope="module")
def composed(student):
    made = load(student)
    made.model.eval()
    return made


def first_batch(composed, records, folder, packing):
    data = {"mixture": [{"source": "jsonl", "path": str(records)}], "max_length": 256, "packing": packing}
    sizes = {"batch_size": 6, "micro_batch_size": 6, "rank": 0, "world_size": 1, "start_step": 0}
    section = DataSection.model_validate(data)
    loader = build_loader(section, composed.processor, seed=0, rejected=folder / "rejected.jsonl", **sizes)
    return next(iter(loader))


def test_an_answer_ends_where_the_chat_template_ends_it(tmp_path):
    tokenizer = byte_tokenizer(image=True)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in tokenizer.all_special_ids  # of these a tokenizer lists the named ones alone
    save_tiny_model(tmp_path, 0, 1, None, tokenizer=tokenizer, template="chatml")
    found = stop_ids(compose(StudentSection(init=str(tmp_path))))
    assert end in found
    assert tokenizer.eos_token_id in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("tokens", [None, 4, 2])
def test_the_samples_are_what_the_student_finds_likely_where_training_reads_them(
    composed, records, tmp_path, tokens, packing
):
    model, stops = composed.model, composed.processor.tokenizer.all_special_ids
    batch = first_batch(composed, records, tmp_path, packing)
    own = own_answers(model, batch, tokens, GREEDY, stops, "0")
    assert own["input_ids"].shape[0] == len(batch["sample_ids"]) == 6
    answers = answer_batch(own | {"normalizer": 1.0})
    features = model.image_features(own.get("pixel_values"), None)
    with torch.no_grad():
        [(_, prefix)] = prefixes(model, features, own, [tokens])
        outputs = read_outputs(model, prefix, own, answers)
        best = outputs.head(outputs.answer_hidden).argmax(-1)
    assert torch.equal(best, answers.answer_ids)
    assert len(best) > 6


def test_the_question_stays_the_answer_is_replaced_and_nothing_follows_its_end(composed, records, tmp_path):
    tokenizer = composed.processor.tokenizer
    batch = first_batch(composed, records, tmp_path, False)
    warm = OnPolicySection(temperature=3.0, max_new_tokens=200)
    own = own_answers(composed.model, batch, 4, warm, tokenizer.all_special_ids, "0")
    ended = 0
    for row in range(6):
        asked = batch["labels"][row].ne(-100).nonzero()[0, 0]
        answered = own["labels"][row] != -100
        assert torch.equal(own["input_ids"][row, :asked], batch["input_ids"][row, :asked])
        assert answered.nonzero()[0, 0] == asked
        answer = own["input_ids"][row][answered].tolist()
        assert 1 <= len(answer) <= 200
        assert not set(answer[:-1]) & set(tokenizer.all_special_ids)
        ended += answer[-1] in tokenizer.all_special_ids
        assert own["attention_mask"][row].sum() == asked + len(answer)
    assert ended
    assert torch.equal(own["image_rows"], batch["image_rows"])


def test_sampling_depends_on_its_seed_alone_and_leaves_the_model_and_the_generator_as_they_were(
    composed, records, tmp_path
):
    batch = first_batch(composed, records, tmp_path, False)
    hot, stops = OnPolicySection(temperature=2.0, max_new_tokens=9), composed.processor.tokenizer.all_special_ids
    composed.model.train()
    state = torch.random.get_rng_state()
    first, again, other = (
        own_answers(composed.model, batch, 4, hot, stops, seed)["input_ids"] for seed in ("a", "a", "b")
    )
    assert composed.model.training
    composed.model.eval()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_generation_settings_that_a_decoder_brings_do_not_bend_what_is_sampled(composed, records, tmp_path):
    """Qwen's, for one, hold a top_p, a top_k and a repetition penalty."""
    batch = first_batch(composed, records, tmp_path, False)
    hot, stops = OnPolicySection(temperature=2.0, max_new_tokens=9), composed.processor.tokenizer.all_special_ids
    plain = own_answers(composed.model, batch, 4, hot, stops, "a")["input_ids"]
    before = composed.model.generation_config
    composed.model.generation_config = brought = GenerationConfig(
        do_sample=True, top_p=0.01, top_k=1, repetition_penalty=3.0, num_beams=2
    )
    try:
        assert torch.equal(own_answers(composed.model, batch, 4, hot, stops, "a")["input_ids"], plain)
        assert composed.model.generation_config is brought
    finally:
        composed.model.generation_config = before


def test_ids_that_no_one_has_a_token_for_and_that_the_teacher_lacks_are_never_sampled(composed, records, tmp_path):
    """As 151,936 rows against 152,064: what the wider student samples has to have a row in the teacher's embedding."""
    batch = first_batch(composed, records, tmp_path, False)
    stops, hot = composed.processor.tokenizer.all_special_ids, OnPolicySection(temperature=50.0, max_new_tokens=12)
    own = own_answers(composed.model, batch, 4, hot, stops, "0", vocabulary=200)
    assert own["labels"].max() < 200
    assert own_answers(composed.model, batch, 4, hot, stops, "0")["labels"].max() >= 200


def test_what_is_sampled_are_the_ids_that_student_and_teacher_both_have(composed):
    teacher = SharedTeacher()
    task = DistillTask(composed.model, [(ReverseKL(), 1.0)], teacher, vocabulary=9)
    assert task.readable_ids() == 9
    teacher.vocabulary = 7
    assert task.readable_ids() == 7


def test_sampling_leaves_a_tower_in_eval_mode_where_the_rest_trains(composed, records, tmp_path):
    task = DistillTask(composed.model, [(ReverseKL(), 1.0)], SharedTeacher()).train()
    stops = composed.processor.tokenizer.all_special_ids
    own_answers(composed.model, first_batch(composed, records, tmp_path, False), 4, GREEDY, stops, "0")
    assert task.student.language_model.training
    assert not any(module.training for module in task.student.vision_tower.modules())
    composed.model.eval()


def test_the_share_of_steps_is_the_one_asked_for():
    section = OnPolicySection(share=0.25)
    drawn = [is_on_policy(section, 3, step) for step in range(2000)]
    assert 0.2 < sum(drawn) / 2000 < 0.3
    assert drawn == [is_on_policy(section, 3, step) for step in range(2000)]
    assert not any(is_on_policy(None, 3, step) for step in range(20))
    assert all(is_on_policy(OnPolicySection(share=1), 3, step) for step in range(20))


@pytest.mark.parametrize(
    ("names", "zero", "kind", "message"),
    [
        (["cross_entropy"], 2, "live", "needs an objective by which a teacher judges"),
        (["cross_entropy", "uld"], 2, "live", r"e\.g\. reverse_kl"),
        (["reverse_kl"], 3, "live", "use stage 2"),
        (["forward_kl"], 2, "cached", "knows those of the data"),
    ],
)
def test_what_cannot_be_is_refused(config, names, zero, kind, message):
    sections = {"objectives": [{"name": name} for name in names], "teacher": {"kind": kind}}
    with pytest.raises(ConfigError, match=message):
        check_on_policy(Config.model_validate(config(stage={"on_policy": {}}, zero=zero, **sections)))
    check_on_policy(Config.model_validate(config(zero=zero, **sections)))
    check_on_policy(Config.model_validate(config(stage={"on_policy": {}})))


@pytest.mark.distributed
def test_a_run_of_two_ranks_scores_samples_at_some_steps_and_goes_on_from_a_checkpoint(config):
    stage = {"steps": 8, "micro_batch_size": 2, "on_policy": {"share": 0.58, "max_new_tokens": 6}}
    objectives = [{"name": "cross_entropy"}, {"name": "reverse_kl", "chunk": 8}]
    settings = config(stage=stage, training={"save_every": 4, "keep_checkpoints": 9}, objectives=objectives)
    whole = ranks.run(settings)
    lines = ranks.lines(settings)
    own = [is_on_policy(OnPolicySection(share=0.58), 3, step) for step in range(8)]
    assert 1 < sum(own) < 7
    assert any(own[4:])
    for line, drawn in zip(lines, own, strict=True):
        assert ("on_policy/reverse_kl" in line) == drawn
        assert ("reverse_kl" in line) == (not drawn)
        if drawn:  # cross_entropy does not teach the student what it says already
            assert line["loss"] == pytest.approx(line["on_policy/reverse_kl"], rel=1e-4)

    run = Path(settings["run"]["dir"])
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "distill" / "checkpoint-8")
    assert ranks.run(settings, resume=True) == pytest.approx(whole, rel=1e-6)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8


def test_rationales_are_weighed_by_answers_that_it_replaces(config):
    settings = config(stage={"on_policy": {}}, objectives=[{"name": "reverse_kl"}], teacher={"kind": "live"})
    settings["data"]["rationales"] = {}
    with pytest.raises(ConfigError, match=r"data\.rationales weighs these and their rationales"):
        check_on_policy(Config.model_validate(settings))
