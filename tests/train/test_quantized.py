"""A teacher in 4 or 8 bits beside a student that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from torch import nn

from mmkd.config.schema import Config, TeacherSection
from mmkd.errors import ConfigError
from mmkd.lora import check_lora
from mmkd.teachers.checks import check_filling, check_section, check_teacher
from mmkd.teachers.live import LiveTeacher
from mmkd.teachers.logit_store import read_manifest

bnb = pytest.importorskip("bitsandbytes")
STAGE = {"steps": 2, "micro_batch_size": 4}
LAYERS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}


def load(teacher: Path, quantize: str | None) -> LiveTeacher:
    return LiveTeacher(str(teacher), torch.float32, "sdpa", torch.device("cpu"), quantize)


def logits(teacher: LiveTeacher) -> torch.Tensor:
    text = torch.arange(3, 40)[None]
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    prompt = torch.cat([torch.full((1, 4), teacher.model.config.image_token_id), text], 1)
    prompt = torch.cat([torch.full((1, 1), teacher.model.config.sink_token_id), prompt], 1)
    with torch.no_grad():
        return teacher.model(input_ids=prompt, pixel_values=image).logits[0].log_softmax(-1)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_decoders_layers_are_quantised_nothing_else_and_what_they_are_stays_near(square_teacher, kind):
    quantised, plain = load(square_teacher, kind), load(square_teacher, None)
    kinds = {name: type(m).__name__ for name, m in quantised.model.named_modules() if isinstance(m, nn.Linear)}
    layers = {name for name, made in kinds.items() if made == LAYERS[kind]}
    assert layers == {name for name in kinds if ".layers." in name and name.startswith("language_model")}
    assert len(layers) == 3 * 7
    assert all(made == "Linear" for name, made in kinds.items() if name not in layers)
    assert not any(parameter.requires_grad for parameter in quantised.model.parameters())
    for name in layers:
        weight, exact = quantised.model.get_submodule(name).weight, plain.model.get_submodule(name).weight
        if kind == "nf4":
            found = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        else:
            found = bnb.functional.int8_vectorwise_dequant(weight.CB if weight.CB is not None else weight, weight.SCB)
        assert 0 < (found - exact).norm() / exact.norm() < {"nf4": 0.12, "int8": 0.01}[kind]
    q = logits(quantised)
    distance = (logits(plain).exp() * (logits(plain) - q)).sum(-1).mean()
    assert 0 < distance < {"nf4": 0.5, "int8": 0.01}[kind]
    # A 4-bit weight that was repacked at its first forward would be another one once it has been saved.
    quantised.model.state_dict()
    assert torch.equal(logits(quantised), q)


def test_widths_that_a_cpu_would_read_wrongly_are_refused(teacher):
    with pytest.raises(ConfigError, match=r"q_proj is 32 wide, and on a CPU .* multiple of 64. Use int8"):
        load(teacher, "nf4")


def test_they_are_refused_before_anything_is_loaded_where_config_json_tells(config, teacher, student, tmp_path):
    shutil.copytree(teacher, tmp_path / "t", ignore=shutil.ignore_patterns("*.safetensors"))
    nf4 = config(teacher={"kind": "live", "model": str(tmp_path / "t"), "quantize": "nf4"})
    with pytest.raises(ConfigError, match=r"teacher.quantize nf4 of .*: the decoder's hidden_size is 32.* Use int8"):
        check_teacher(Config(**nf4))
    nf4["teacher"]["quantize"] = "int8"
    check_teacher(Config(**nf4))
    stage = {"lora": {"quantize": "nf4"}}
    with pytest.raises(ConfigError, match=r"stage distill: lora.quantize: the decoder's hidden_size is 32"):
        check_lora(Config(**config(stage=stage)))


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "zero"), [pytest.param("nf4", 3, marks=pytest.mark.slow), ("int8", 2)])
def test_a_student_learns_from_it_under_zero_and_is_not_quantised(config, square_teacher, kind, zero):
    plain = config("live", stage=STAGE, teacher={"kind": "live", "model": str(square_teacher)})
    live = ranks.run(plain, world=1)
    section = {"kind": "live", "model": str(square_teacher), "quantize": kind}
    settings = config(stage=STAGE, zero=zero, teacher=section)
    assert ranks.run(settings, world=2) == pytest.approx(live, rel=0.03)
    assert ranks.lines(settings)[0]["ce"] == pytest.approx(ranks.lines(plain)[0]["ce"], rel=1e-4)
    assert "quantization_config" not in json.loads((Path(settings["run"]["dir"]) / "model/config.json").read_text())


@pytest.mark.distributed
def test_a_cache_of_a_quantised_teacher_says_so_and_is_refused_as_one_of_another(
    config, square_teacher, tmp_path, monkeypatch
):
    section = {"kind": "cached", "model": str(square_teacher), "store": str(tmp_path / "store"), "quantize": "nf4"}
    settings = config(stage=STAGE, teacher=section)
    [result] = ranks.on_ranks(1, ranks.call, str(Path(__file__).with_name("test_cached.py")), "fill", settings)
    assert not isinstance(result, Exception)
    assert read_manifest(tmp_path / "store").quantize == "nf4"
    check_teacher(Config(**settings))
    with pytest.raises(ConfigError, match=r"something else: quantize \(nf4 there, int8 here\)"):
        check_teacher(Config(**settings | {"teacher": section | {"quantize": "int8"}}))
    with pytest.raises(ConfigError, match=r"something else: quantize \(nf4 there, None here\)"):
        check_teacher(Config(**settings | {"teacher": section | {"quantize": None}}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_teacher(Config(**settings))  # reading the cache loads no teacher
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        check_filling(Config(**settings))


def test_the_shared_teacher_which_is_the_student_is_never_quantised():
    with pytest.raises(ConfigError, match=r"teacher.quantize has no place beside kind: shared, whose weights are the"):
        check_section(TeacherSection(kind="shared", quantize="nf4"))


def test_without_bitsandbytes_the_error_says_how_to_install_it(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'mmkd\[quant\]'"):
        check_teacher(Config(**config(teacher={"kind": "live", "model": "x", "quantize": "int8"})))
