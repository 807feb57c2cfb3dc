"""A teacher that learns from the student's wins, and what docs/compete.md and the packaged configs say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mmkd.checkpoints import mark_complete
from mmkd.config.compete_schema import CompeteConfig, TrainingRunSection
from mmkd.config.load import load_as, load_config
from mmkd.data.record_files import jsonl
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.augmenting import check_augmentor
from mmkd.synthesis.competing.augmentors import Draft, Wanted
from mmkd.synthesis.competing.augmentors.registry import AUGMENTORS
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.items import Item, each_row, write_items, write_rows
from mmkd.synthesis.competing.training import preference_config, round_config, teacher_config
from tests.synthesis.competing.test_growing import config
from tests.synthesis.fault_proxy import FaultProxy

STAGE = {"name": "learn", "steps": 2, "batch_size": 2}
ASIDE = ("pool", "augment")
MIXTURE = {"mixture": [{"source": "jsonl", "path": "x"}]}


def test_the_teacher_learns_wins_that_are_sure_and_right_and_is_followed(tmp_path):
    plan = {"student": {"init": "x"}, "data": MIXTURE, "stages": [STAGE | {"lora": {"rank": 2}}]}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(plan))
    config = CompeteConfig.model_validate(
        {
            "out": str(tmp_path / "out"),
            "start": "student",
            "training": {"config": str(tmp_path / "teacher.yaml")},
            "teacher": {"vlm": {"model": "old teacher"}},
            "feedback": "mutual",
            "teacher_training": {"config": str(tmp_path / "teacher.yaml")},
            "pool": [{"source": "scenes"}],
            "held_out": [{"source": "scenes", "split": "validation"}],
            "augment": {"name": "grounded"},
        }
    )
    launched = []

    def launch(job: str, file: str, run: Path) -> None:
        launched.append((job, load_config(file), run))
        (run / "model").mkdir(parents=True)
        mark_complete(run / "model")

    assert config.teacher_training is not None
    plans = {"teacher_training": teacher_config(config.teacher_training)}
    one = Competition(config, plans, tmp_path / "out", launch)
    write_items(one._pool(0), [Item(f"i{n}", "what?", (), answer="teacher's") for n in range(5)])
    outcomes = [
        Outcome("i0", Kind.WIN, "teacher's", "right", (2.0, 9.0)),
        Outcome("i1", Kind.WIN, "teacher's", "better, but wrong", (2.0, 5.0)),
        Outcome("i2", Kind.WIN, "teacher's", "as the order has it", (7.0, 9.0), agree=False),
        Outcome("i3", Kind.HARD, "teacher's", "wrong", (9.0, 1.0)),
        Outcome("i4", Kind.UNSCORED, "teacher's", "?", None),
    ]
    write_rows(one._folder(1) / "verdicts.jsonl", (outcome.row() for outcome in outcomes))
    one._follow(one._teach(1))
    ((job, trained, run),) = launched
    (record,) = jsonl(trained.data.mixture[0].options()["path"])
    assert (job, trained.student.init, record.turns[1].text) == ("train", "old teacher", "right")
    assert record.provenance.model == "student of round 1"
    assert one.teacher.vlm is not None
    assert one.teacher.vlm.model == str(run / "model")
    one._follow(None)  # a round without wins
    assert one.teacher.vlm.model == str(run / "model")


def test_what_a_teacher_that_has_learned_gets_wrong_is_written_down_apart_from_new_questions(tmp_path, monkeypatch):
    def again(wanted: Wanted) -> Iterator[Draft]:
        for parent in wanted.parents:
            yield Draft(parent, f"{parent.item.question} once more?", "right")

    def content(body: dict) -> str:  # wrong about the first item of the pool and about the first new one
        return "wrong" if "thing 0 or" in str(body["messages"]) or "thing 1 or so? once" in str(body) else "right"

    monkeypatch.setitem(AUGMENTORS, "again", again)
    with FaultProxy(None, content=content) as proxy:
        teacher = {"endpoint": {"url": proxy.url, "model": "old", "check_images": False}}
        augment = {"name": "again", "count": 2, "hard_share": [1]}
        one = Competition(config(teacher=teacher, augment=augment, filters={"similarity": 1.0}), {}, tmp_path, print)
        one.teacher = one.teacher.model_copy(
            update={"endpoint": one.teacher.endpoint.model_copy(update={"model": "learned"})}
        )
        items = [Item(f"i{n}", f"is it thing {n} or so?", (), reference="right", answer="right") for n in range(3)]
        write_items(one._pool(0), items)
        outcomes = (Outcome(f"i{n}", Kind.HARD, "right", "?", (9.0, 1.0)).row() for n in (1, 2))
        write_rows(one._folder(1) / "verdicts.jsonl", outcomes)
        grown = one._augment(1)
    assert (grown["drafted"], grown["kept"], grown["pool"]) == (2, 1, 3)
    aside = {name: [row["id"] for row in each_row(tmp_path / "rejected" / f"{name}-1.jsonl")] for name in ASIDE}
    assert aside == {"pool": ["i0"], "augment": ["r1.0"]}


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        ({"keep_layers": 1}, round_config, r"sets student\.keep_layers"),
        ({"voco": {"tokens": 2}}, round_config, r"sets student\.voco"),
        ({}, teacher_config, "has no lora"),
    ],
)
def test_trainings_that_no_round_can_use_are_refused(tmp_path, change, check, message):
    plan = {"student": {"init": "x"} | change, "data": MIXTURE, "stages": [STAGE]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    section = TrainingRunSection(config=str(tmp_path / "plan.yaml"))
    with pytest.raises(ConfigError, match=message):
        check(section, "training") if check is round_config else check(section)


@pytest.mark.parametrize("name", ["scenes/compete", "real/compete"])
def test_the_packaged_competitions_can_begin(name):
    config = load_as(name, [], CompeteConfig)
    check_augmentor(config)
    plan = round_config(config.training, "training")
    assert plan.student.init == "the model of the round before"
    if config.later_training is not None:
        later = round_config(config.later_training, "later_training")
        assert later.stages[0].learning_rate < plan.stages[0].learning_rate
    pairs = config.preference_training or TrainingRunSection(config="scenes/compete-prefer")
    assert preference_config(pairs).teacher is not None
    if config.pretraining is not None:
        load_config(config.pretraining.config, config.pretraining.overrides)


def test_the_page_names_every_augmentor_and_its_config_is_one(root, tmp_path):
    page = (root / "docs" / "compete.md").read_text()
    text, more, reworded = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "compete.yaml").write_text(text + more)
    config = load_as(tmp_path / "compete.yaml", [], CompeteConfig)
    check_augmentor(config)
    (tmp_path / "reworded.yaml").write_text(re.sub("augment: .*\n", reworded, text))
    check_augmentor(load_as(tmp_path / "reworded.yaml", [], CompeteConfig))
    assert config.preference_training is not None
    preference_config(config.preference_training)
    packaged = [name for name, one in AUGMENTORS.items() if one.__module__.startswith("mmkd.")]
    assert packaged
    assert all(f"`{name}`" in page for name in packaged)
    assert all(f"| {kind} |" in page for kind in Kind)
