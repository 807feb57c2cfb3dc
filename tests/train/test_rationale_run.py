"""Training on rationales through the whole job: VoCo student, live and cached teacher, ranks and accumulation."""

from __future__ import annotations

import json

import pytest
import ranks
from test_cached import filled

from mmkd.config.schema import DataSection
from mmkd.teachers.identity import data_identity

STAGE = {"steps": 2, "micro_batch_size": 4}


@pytest.fixture
def data(records, tmp_path):
    """Every other answer has a rationale."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["images"] = [str(records.parent / name) for name in row["images"]]
        if number % 2:
            row["turns"][1]["rationale"] = "There is one, because there is one."
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "jsonl", "path": str(tmp_path / "told.jsonl")}
    return lambda mode="separate": {"mixture": [source], "max_length": 256, "rationales": {"mode": mode, "weight": 0.5}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["separate", "answer_first", "rationale_first"])
def test_losses_do_not_hang_on_accumulation_or_ranks(config, data, mode):
    whole = ranks.run(config("whole", stage=STAGE | {"micro_batch_size": 8}, data=data(mode)), world=1)
    parts = ranks.run(config("parts", stage=STAGE | {"micro_batch_size": 2}, data=data(mode)), world=2)
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_a_cached_teacher_knows_the_rationales_too(config, data, teacher, tmp_path):
    cached = {"kind": "cached", "model": str(teacher), "store": str(tmp_path / "store"), "k": 259, "dtype": "float32"}
    settings = config("cached", stage=STAGE, data=data(), teacher=cached)
    filled(settings)
    live = ranks.run(config("live", stage=STAGE, data=data()), world=1)
    assert ranks.run(settings, world=1) == pytest.approx(live, rel=1e-4)


def test_a_store_filled_for_other_rationales_is_of_other_data(data):
    plain = DataSection.model_validate({**data(), "rationales": None})
    modes = [DataSection.model_validate(data(mode)) for mode in ("separate", "answer_first")]
    assert len({data_identity(one) for one in (plain, *modes)}) == 3


@pytest.mark.distributed
def test_uld_weighs_rationales_too_though_its_teacher_counts_other_tokens(config, data, foreign_teacher):
    losses = {}
    for weight in (0.5, 0.0):
        made = config(f"weight-{weight}", objectives=[{"name": "uld"}], stage={"steps": 2}, data=data())
        made["teacher"] = {"kind": "live", "model": str(foreign_teacher)}
        made["data"]["rationales"]["weight"] = weight
        losses[weight] = ranks.run(made, world=1)
    assert losses[0.5][0] > losses[0.0][0] > 0
