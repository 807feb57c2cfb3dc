"""ZeRO on two ranks trains as one plain process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch


@pytest.fixture(scope="module")
def plain(make_config, tmp_path_factory) -> list[float]:
    return ranks.one_plain_process(make_config(tmp_path_factory.mktemp("plain")))


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_equal_one_plain_process(finished, plain, zero):
    """With a teacher, two micro batches a step, clipping, and micro batches in which no image is left to a rank."""
    found = ranks.losses(finished(zero))
    assert len(found) == 20
    assert plain[-1] < plain[0] - 0.5
    assert found == pytest.approx(plain, rel=1e-4)


UNCLIPPED = {"steps": 5, "gradient_clipping": 0.0, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def plain_unclipped(make_config, tmp_path_factory) -> list[float]:
    return ranks.one_plain_process(make_config(tmp_path_factory.mktemp("plain"), stage=UNCLIPPED))


@pytest.mark.distributed
@pytest.mark.parametrize(("zero", "offload"), [(0, "none"), (2, "cpu"), (3, "cpu")])
def test_stage_0_and_offload_equal_it_too_and_a_clipping_of_0_is_none(config, plain_unclipped, zero, offload):
    settings = config(stage=UNCLIPPED, zero=zero)
    settings["deepspeed"]["offload"] = offload
    assert ranks.run(settings) == pytest.approx(plain_unclipped, rel=1e-4)
    if zero:  # stage 0 reports no norm
        assert min(line["grad_norm"] for line in ranks.lines(settings)) > 1.0  # clipping would have changed it


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [2, 3])
def test_a_teacher_cut_up_over_the_ranks_by_an_engine_of_its_own_changes_no_loss_and_is_in_no_checkpoint(
    config, plain_unclipped, teacher, zero
):
    section = {"kind": "live", "model": str(teacher), "zero3": True}
    settings = config(stage=UNCLIPPED, zero=zero, teacher=section, training={"save_every": 5})
    settings["deepspeed"]["config"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    assert ranks.run(settings) == pytest.approx(plain_unclipped, rel=1e-4)
    states = list((Path(settings["run"]["dir"]) / "checkpoints").rglob("*model_states.pt"))
    names = {name for path in states for name in torch.load(path, weights_only=False)["module"]}
    assert names
    assert all(name.startswith("student.") for name in names)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [{"training": {"activation_checkpointing": True}}, {"packing": True}],
    ids=["activation_checkpointing", "packing"],
)
def test_what_saves_memory_or_time_changes_no_loss(config, plain, records, options):
    packing = options.pop("packing", False)
    data = {"mixture": [{"source": "jsonl", "path": str(records)}], "max_length": 256, "packing": packing}
    stage = {"micro_batch_size": 4} if packing else {}
    assert ranks.run(config(data=data, stage=stage, **options)) == pytest.approx(plain, rel=1e-4)


def summed(zero: int) -> float:
    """How far a gradient added up over 64 micro batches in bf16 is from the sum of theirs."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    from mmkd.config.schema import DeepspeedSection, StageSection, TrainingSection
    from mmkd.train.deepspeed import deepspeed_config, prepare_launch

    prepare_launch("auto")
    deepspeed.init_distributed("gloo", verbose=False)
    section, training = DeepspeedSection(stage=zero), TrainingSection(precision="bf16")
    settings = deepspeed_config(section, StageSection(name="s", steps=1), training, 1, 64)
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(64, 64, bias=False), torch.randn(64, 4, 64).bfloat16()
    weight = layer.weight.detach().bfloat16().requires_grad_()
    expected = torch.zeros(64, 64, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    engine = deepspeed.initialize(model=layer, optimizer=optimizer, config=settings)[0]
    for row in rows:
        [gradient] = torch.autograd.grad((row @ weight.T).float().square().mean(), weight)
        expected += gradient.double() / 64
        engine.backward(engine(row).float().square().mean())
        if engine.is_gradient_accumulation_boundary():
            found = safe_get_full_grad(engine.module.weight).double()
        engine.step()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [2, 3])
def test_in_bf16_micro_batches_are_added_up_in_fp32(zero):
    [found] = ranks.on_ranks(1, ranks.call, __file__, "summed", zero)
    assert found < 1e-3


@pytest.mark.distributed
def test_a_run_in_bf16_learns(config):
    found = ranks.run(config(stage={"steps": 20}, training={"precision": "bf16"}))
    assert sum(found[-4:]) < sum(found[:4]) - 2


@pytest.mark.distributed
def test_a_second_stage_under_zero_3_starts_from_the_whole_model_of_the_first(config):
    """transformers would partition what the second stage loads, had the first not switched that off."""
    first = {"name": "align", "steps": 3, "trainable": ["projector", "voco"], "batch_size": 8, "micro_batch_size": 4}
    second = {"name": "tune", "steps": 3, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3}
    found = {}
    for zero in (1, 3):
        settings = config(f"zero-{zero}", zero=zero)
        settings["stages"] = [first, second]
        ranks.run(settings)
        found[zero] = ranks.lines(settings)
    assert [(line["stage"], line["step"]) for line in found[3]] == [
        (s, n) for s in ("align", "tune") for n in (1, 2, 3)
    ]
    assert [line["loss"] for line in found[3]] == pytest.approx([line["loss"] for line in found[1]], rel=1e-4)
