"""Preference pairs of rounds: mended answers in the teacher's place, what is gathered, and who may learn them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mmkd.config.compete_schema import CompeteConfig, RefineSection, TrainingRunSection
from mmkd.data.preferences import preferences as read_pairs
from mmkd.data.rejected import RejectedLog
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.items import Item, write_rows
from mmkd.synthesis.competing.pairs import FILE, gathered, preferences
from mmkd.synthesis.competing.refining import Refined, refine
from mmkd.synthesis.competing.training import placed_on_pairs, preference_config
from mmkd.synthesis.store import Store


def test_what_the_judge_accepts_becomes_a_pair_and_nothing_is_asked_twice(failed, oracle, tmp_path):
    items, outcomes = failed
    server = {"endpoint": {"url": oracle, "model": "oracle", "license": "MIT"}}
    config = CompeteConfig.model_validate(
        {"out": str(tmp_path), "start": "s", "training": {"config": "t"}, "teacher": server, "reasks": 0,
         "pool": [{"source": "scenes"}], "held_out": [{"source": "scenes"}], "augment": {"name": "grounded"}}
    )  # fmt: skip

    def mend(tries: int):
        log = RejectedLog(tmp_path / f"refine-{tries}.jsonl")
        return refine(config, RefineSection(tries=tries), tmp_path, 1, outcomes, items, config.teacher, log)

    once = mend(1)
    assert 0 < len(once.found) < once.asked == len(outcomes)
    assert once.gone.keys() == {"still faulty", "nothing mended"}
    assert all(one.answer == items[name].reference and one.failed == "wrong" for name, one in once.found.items())
    again = mend(3)
    assert once.found.items() <= again.found.items()
    assert len(again.found) > len(once.found)
    assert {one.attempt for one in again.found.values()} == {1, 2, 3}
    left = [sum(one.attempt > attempt for one in again.found.values()) for attempt in (0, 1, 2)]
    never = len(outcomes) - len(again.found)
    with Store(tmp_path / "asked" / "refine") as store:
        assert sum(one.request["id"] != "without" for one in store.entries()) == sum(left) + 3 * never
    reasons = [json.loads(line)["kind"] for line in (tmp_path / "refine-3.jsonl").read_text().splitlines()]
    assert reasons.count("still faulty") == again.gone["still faulty"]


def test_a_mended_answer_stands_in_the_place_of_the_teachers(tmp_path):
    items = {name: Item(name, "what?", (str(tmp_path / "a.png"),)) for name in "ab"}
    outcomes = [Outcome(name, Kind.HARD, "a cat", "there is a dog here", (9.0, 3.0)) for name in "ab"]
    mended = {"a": Refined("a", "there is a cat here", "there is a dog here", (10.0, 3.0), 1, 0.8)}
    first, second = preferences(outcomes, items, 7.0, tmp_path / "round-1", mended)
    assert (first["winner"], first["chosen"][0]["content"], first["scores"]) == (
        "refiner", "there is a cat here", [10.0, 3.0],
    )  # fmt: skip
    assert (second["winner"], second["chosen"][0]["content"]) == ("teacher", "a cat")


def row(name: str, chosen: str, rejected: str) -> dict:
    said = {"chosen": chosen, "rejected": rejected}
    return {"id": name, "images": ["../a.png"], "prompt": [{"role": "user", "content": "what?"}]} | {
        key: [{"role": "assistant", "content": text}] for key, text in said.items()
    }


def test_pairs_of_rounds_are_gathered_once_each_and_the_newest_word_counts(tmp_path):
    write_rows(tmp_path / "round-1" / FILE, [row("a", "red", "blue"), row("b", "yes", "no")])
    write_rows(tmp_path / "round-2" / FILE, [row("a", "blue", "red"), row("a", "red", "green"), row("b", "yes", "no")])
    into = tmp_path / "deep" / "down"
    write_rows(into / "pairs.jsonl", gathered([tmp_path / "round-1", tmp_path / "round-2"], into))
    records = read_pairs(str(into / "pairs.jsonl"))
    found = [(one.id, one.turns[-1].text, one.turns[-1].rejected) for one in records]
    assert found == [("a", "blue", "red"), ("b", "yes", "no"), ("a", "red", "green")]
    assert {Path(image).resolve() for one in records for image in one.images} == {(tmp_path / "a.png").resolve()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"name": "cross_entropy"}]}, "neither dpo nor simpo"),
        ({"teacher": None}, "has no teacher"),
        ({"teacher": {"kind": "cached", "store": "x"}}, "of which no store is kept"),
    ],
)
def test_trainings_that_cannot_learn_pairs_are_refused_and_others_get_their_reference(tmp_path, changes, message):
    plan = {
        "student": {"init": "x"},
        "teacher": {"kind": "live"},
        "objectives": [{"name": "dpo"}],
        "data": {"mixture": [{"source": "jsonl", "path": "x"}]},
        "stages": [{"name": "prefer", "steps": 2}],
    }
    section = TrainingRunSection(config=str(tmp_path / "plan.yaml"))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | changes))
    with pytest.raises(ConfigError, match=message):
        preference_config(section)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    ready = placed_on_pairs(preference_config(section), tmp_path / "run", "student", tmp_path / "pairs.jsonl", 3)
    assert ready.teacher is not None
    assert (ready.student.init, ready.teacher.model, ready.data.mixture[0].source) == (
        "student", "student", "preferences",
    )  # fmt: skip
