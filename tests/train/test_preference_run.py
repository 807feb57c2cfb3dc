"""Training on preference pairs through the whole job: VoCo student, live and cached reference, ranks, accumulation."""

from __future__ import annotations

import json
import math

import pytest
import ranks
from test_cached import filled

from mmkd.config.schema import Config
from mmkd.errors import ConfigError
from mmkd.teachers.pairs import check_pairs

DPO = [{"name": "dpo", "beta": 0.5, "chunk": 8}, {"name": "cross_entropy", "weight": 0.1}]
STAGE = {"steps": 2, "batch_size": 8, "micro_batch_size": 2}


@pytest.fixture
def pairs(records, tmp_path):
    """The records, some without an image, some of several turns, with a worse answer to each last question."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["images"] = [str(records.parent / name) for name in row["images"]]
        row["turns"][-1]["rejected"] = "nothing that I can see" if number % 2 else "?"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "jsonl", "path": str(tmp_path / "pairs.jsonl")}
    return lambda **options: {"mixture": [source], "max_length": 256} | options


@pytest.mark.distributed
def test_ranks_accumulation_zero_packing_and_a_cached_reference_change_no_loss(config, pairs, student, tmp_path):
    """Two micro batches of two packed pairs on each of two ranks, all weights cut up; then log-probs of a store."""
    reference = {"kind": "live", "model": str(student)}
    sections = {"data": pairs(), "objectives": DPO, "teacher": reference}
    plain = ranks.one_plain_process(config("plain", stage=STAGE, **sections))
    packed = config("packed", stage=STAGE, zero=3, **sections | {"data": pairs(packing=True)})
    assert ranks.run(packed) == pytest.approx(plain, rel=1e-4)
    store = {"kind": "cached", "model": str(student), "store": str(tmp_path / "store"), "k": 1, "dtype": "float32"}
    cached = config("cached", stage=STAGE, **sections | {"teacher": store})
    filled(cached)
    assert ranks.run(cached, world=1) == pytest.approx(plain, rel=1e-4)


@pytest.mark.distributed
def test_adapters_learn_against_the_student_without_them(config, pairs):
    """With full vision it starts as its own reference, at log 2, and gets to prefer the better answers."""
    stage = {"steps": 12, "batch_size": 8, "micro_batch_size": 4, "read": ["full"], "lora": {"rank": 4},
             "trainable": ["language"], "learning_rate": 2e-2}  # fmt: skip
    settings = config("lora", stage=stage, data=pairs(), objectives=DPO[:1], teacher={"kind": "shared"})
    ranks.run(settings, world=1)
    lines = ranks.lines(settings)
    assert lines[0]["dpo"] == pytest.approx(math.log(2), rel=1e-4)
    assert lines[-1]["dpo"] < 0.5 * lines[0]["dpo"]
    assert lines[-1]["dpo_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, r"teacher: \{kind: live, model: .*or use simpo"),
        ({"teacher": {"kind": "shared"}}, "has no lora"),
        ({"teacher": {"kind": "shared"}, "stage": {"lora": {}}}, "trains embeddings, projector"),
        ({"objectives": [*DPO, {"name": "voco_attention"}]}, "voco_attention learns from all answers"),
        ({"stage": {"on_policy": {}}}, "take on_policy out"),
        ({"rationales": {}}, "data.rationales makes other pairs"),
    ],
)
def test_what_cannot_be_is_refused(config, pairs, changes, message):
    rationales = changes.pop("rationales", None)
    settings = {"objectives": DPO, "data": pairs(rationales=rationales)} | changes
    with pytest.raises(ConfigError, match=message):
        check_pairs(Config.model_validate(config(**settings)))


def test_a_loss_without_a_reference_needs_no_teacher(config, pairs):
    check_pairs(Config.model_validate(config(objectives=[{"name": "simpo"}], teacher=None, data=pairs())))
