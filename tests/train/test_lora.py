"""LoRA stages: what learns, what a shared teacher sees, what is exported, under ZeRO and after a kill."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from mmkd.compose import load
from mmkd.config.schema import Config, LoraSection, StageSection, TeacherSection
from mmkd.errors import ConfigError
from mmkd.lora import adapter_parameters, adapters_off, add_adapters, check_lora, merged
from mmkd.objectives import AnswerBatch, ForwardKL, Needs
from mmkd.teachers.live import build_teacher
from mmkd.train.optimizer import parameter_groups
from mmkd.train.task import DistillTask

SIZES = {
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}
LORA = {"rank": 4, "alpha": 16}


def decoder(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SIZES[kind]).eval()


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """Adapters that do something: the one that starts at zero gets values."""
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.normal_(std=0.2)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.tensor([[3, 1, 4, 1, 5]])).logits


@pytest.mark.parametrize("kind", SIZES)
def test_new_adapters_change_nothing_and_trained_ones_can_be_switched_off(kind):
    model = decoder(kind)
    before = logits(model)
    add_adapters(model, LoraSection(**LORA))
    torch.testing.assert_close(logits(model), before)
    trained(model)
    assert (logits(model) - before).abs().max() > 1e-2
    with adapters_off(model):
        torch.testing.assert_close(logits(model), before)
    assert (logits(model) - before).abs().max() > 1e-2
    assert all(parameter.requires_grad for parameter in adapter_parameters(model))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_merged_weights_are_a_plain_model_with_the_same_answers(kind, targets):
    model = decoder(kind)
    names = set(model.state_dict())
    chosen = targets if targets == "all-linear" else [{"llama": "q_proj", "gpt2": "c_attn"}[kind]]
    add_adapters(model, LoraSection(**LORA, targets=chosen))
    expected = logits(trained(model))
    weights = merged(model, model.state_dict())
    assert set(weights) == names
    plain = decoder(kind)
    plain.load_state_dict(weights)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)


def test_all_linear_leaves_the_head_alone():
    model = decoder("llama")
    add_adapters(model, LoraSection(**LORA))
    assert len(adapter_parameters(model)) == 2 * 7 * 2  # A and B of seven matrices in two layers


def test_targets_that_the_decoder_does_not_have_are_named_with_those_it_has():
    with pytest.raises(ConfigError, match=r"qproj.*q_proj.*all-linear"):
        add_adapters(decoder("llama"), LoraSection(targets=["q_proj", "qproj"]))


def batch() -> tuple[dict, AnswerBatch]:
    text = torch.tensor([[5, 6, 7, 8]])
    zeros = torch.zeros_like(text)
    rows, positions = torch.tensor([0, 0]), torch.tensor([1, 2])
    inputs = {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "position_ids": torch.arange(4)[None],
        "segment_ids": zeros,
        "pixel_values": torch.ones(1, 3, 32, 32),
        "image_tiles": torch.tensor([1]),
        "image_rows": torch.tensor([0]),
        "image_segments": torch.tensor([0]),
    }
    return inputs, AnswerBatch(text[0, 2:], rows, positions, torch.ones(1, 4).bool(), zeros, 2.0, None)


def test_adapters_learn_at_the_rate_of_the_language_model(student):
    model = load(student).model.requires_grad_(False)
    add_adapters(model.language_model, LoraSection(rank=2))
    adapters = adapter_parameters(model.language_model)
    for parameter in adapters:
        parameter.requires_grad_(True)
    stage = {"name": "s", "steps": 1, "lora": {"rank": 2}, "trainable": [], "learning_rate": 1e-4}
    for rates, rate in (({}, 1e-4), ({"language": 3e-4}, 3e-4)):
        [group] = parameter_groups(
            DistillTask(model, [], None), StageSection.model_validate({**stage, "learning_rates": rates})
        )
        assert (len(group["params"]), group["lr"]) == (len(adapters), rate)


def test_a_shared_teacher_answers_without_the_students_adapters(student):
    model = load(student).model.eval()
    teacher = build_teacher(TeacherSection(kind="shared"), torch.float32, "sdpa", torch.device("cpu"))
    inputs, answers = batch()
    before = teacher.outputs(model, inputs, answers, Needs()).answer_hidden
    add_adapters(model.language_model, LoraSection(**LORA))
    trained(model.language_model)
    assert torch.equal(teacher.outputs(model, inputs, answers, Needs()).answer_hidden, before)
    with torch.no_grad():
        model.language_model.model.layers[0].mlp.up_proj.base_layer.weight.add_(1.0)
    assert not torch.equal(teacher.outputs(model, inputs, answers, Needs()).answer_hidden, before)


def test_a_shared_teacher_speaks_through_the_head_without_its_adapter(student):
    """Objectives call its head when the student's adapters are on again."""
    model = load(student).model.eval()
    teacher = build_teacher(TeacherSection(kind="shared"), torch.float32, "sdpa", torch.device("cpu"))
    inputs, answers = batch()
    before = teacher.outputs(model, inputs, answers, Needs())
    expected = before.head(before.answer_hidden)
    add_adapters(model.language_model, LoraSection(**LORA, targets=["lm_head"]))
    trained(model.language_model)
    after = teacher.outputs(model, inputs, answers, Needs())
    assert torch.equal(after.head(after.answer_hidden), expected)
    assert not torch.equal(model.head(after.answer_hidden), expected)


def test_after_an_error_of_a_shared_teacher_the_student_has_its_adapters_and_its_mode_again(student):
    model = load(student).model
    teacher = build_teacher(TeacherSection(kind="shared"), torch.float32, "sdpa", torch.device("cpu"))
    add_adapters(model.language_model, LoraSection(**LORA))
    trained(model.language_model)
    DistillTask(model, [(ForwardKL(), 1.0)], teacher).train()  # which leaves the tower in eval mode
    inputs, answers = batch()
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    teacher.outputs(model, inputs, answers, Needs(teacher=True))
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(IndexError):
        teacher.outputs(model, inputs | {"input_ids": inputs["input_ids"] + 10**6}, answers, Needs(teacher=True))
    assert {name: module.training for name, module in model.named_modules()} == modes
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers
    assert not any(layer.disable_adapters for layer in layers)


def lora_run(config, name: str, zero: int, **training) -> dict:
    stage = {"steps": 6, "lora": LORA, "trainable": ["projector", "language", "voco"], "read": [4, 1]}
    return config(name, stage=stage, training={"save_every": 3} | training, zero=zero, teacher={"kind": "shared"})


def weights_of(settings: dict) -> dict[str, torch.Tensor]:
    return load(Path(settings["run"]["dir"]) / "model").model.state_dict()


@pytest.mark.distributed
def test_zero_3_on_two_ranks_trains_and_exports_what_one_rank_does(config, student):
    alone = lora_run(config, "alone", zero=1)
    expected = ranks.run(alone, world=1)
    assert expected[-1] < expected[0]
    start, plain = load(student).model.state_dict(), weights_of(alone)
    assert set(plain) == set(start)  # a plain model again
    for name, weight in start.items():
        learns = name.startswith(("projector", "voco")) or ("proj" in name and name.startswith("language_model"))
        moved = not torch.equal(weight, plain[name])
        assert moved == learns or "bn" in name or "running" in name or "num_batches" in name, name
    for checkpointing in (False, True):
        sharded = lora_run(config, f"sharded-{checkpointing}", zero=3, activation_checkpointing=checkpointing)
        assert ranks.run(sharded) == pytest.approx(expected, rel=1e-4)
        for name, weight in weights_of(sharded).items():
            torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-4, msg=name)


def in_4_bits(settings: dict, student: Path) -> dict:
    """The same run of another student, its decoder's layers in NF4."""
    settings["student"]["init"] = str(student)
    settings["stages"][0]["lora"] = LORA | {"quantize": "nf4"}
    return settings


@pytest.mark.distributed
def test_adapters_beside_4_bit_layers_learn_resume_and_are_merged_into_the_weights_as_they_were(config, square_student):
    pytest.importorskip("bitsandbytes")
    settings = in_4_bits(lora_run(config, "run", zero=2), square_student)
    found = ranks.run(settings)
    assert found[-1] < found[0]
    before, after = load(square_student).model.state_dict(), weights_of(settings)
    assert set(after) == set(before)
    for name, weight in before.items():
        if "proj" in name and name.startswith("language_model"):
            change = after[name] - weight
            assert change.abs().max() > 0
            assert torch.linalg.matrix_rank(change, rtol=1e-3) <= LORA["rank"]
        elif name.startswith("language_model"):
            assert torch.equal(after[name], weight), name
    forget_from(settings, step=6)
    assert ranks.run(settings, resume=True) == pytest.approx(found, rel=1e-5)
    for name, weight in weights_of(settings).items():
        torch.testing.assert_close(weight, after[name], rtol=1e-4, atol=1e-6, msg=name)


def forget_from(settings: dict, step: int) -> None:
    """Leave a finished run as if it had stopped before the checkpoint of `step`."""
    folder = Path(settings["run"]["dir"])
    (folder / "model").rename(folder / "model-of-before")
    last = folder / "checkpoints" / "distill" / f"checkpoint-{step}"
    last.rename(last.with_name(f"was-{step}"))


@pytest.mark.parametrize(("zero", "message"), [(3, "deepspeed.stage 3 cuts weights up; use stage 2"), (2, None)])
def test_4_bit_layers_are_refused_under_zero_3(config, square_student, zero, message):
    settings = Config.model_validate(in_4_bits(lora_run(config, "run", zero=zero), square_student))
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_lora(settings)


@pytest.mark.distributed
def test_a_lora_run_resumes_from_its_checkpoint(config):
    whole = lora_run(config, "whole", zero=2)
    expected = ranks.run(whole)
    cut = lora_run(config, "cut", zero=2)
    ranks.run(cut)
    forget_from(cut, step=6)
    assert ranks.run(cut, resume=True) == pytest.approx(expected, rel=1e-5)
    for name, weight in weights_of(cut).items():
        torch.testing.assert_close(weight, weights_of(whole)[name], rtol=1e-4, atol=1e-6, msg=name)
