"""New questions about scenes, what a round learns, and pictures that must not meet."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.schema import SourceSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog, summary
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.data.scenes import scene
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.augmenting import Gone, check_augmentor, drawn, formed, grow, remember
from mmkd.synthesis.competing.augmentors import Draft, Parent, Wanted
from mmkd.synthesis.competing.augmentors.registry import augmentor
from mmkd.synthesis.competing.compete import compete
from mmkd.synthesis.competing.filters import Known
from mmkd.synthesis.competing.folder import require_same
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.competing.prepare import items_of, require_apart
from mmkd.synthesis.competing.training import rows_of
from mmkd.synthesis.store import Store
from tests.synthesis.competing.oracle import truth

BASE = {
    "out": "out",
    "start": "student",
    "training": {"config": "training"},
    "teacher": {"vlm": {"model": "teacher"}},
    "pool": [{"source": "scenes"}],
    "held_out": [{"source": "scenes", "split": "validation"}],
    "augment": {"name": "grounded", "count": 10, "hard_share": [0.5, 0.8]},
}


def config(**changes) -> CompeteConfig:
    return CompeteConfig.model_validate(BASE | changes)


@pytest.fixture
def parents(tmp_path) -> list[Parent]:
    found = []
    for index in range(6):
        one = scene("train", index, 0, 3)
        file = tmp_path / f"{index}.png"
        file.write_bytes(one.png())
        for number, question in enumerate(one.questions):
            item = Item(f"{index}.{number}", question.text, (str(file),), "scene", question.answer)
            found += [Parent(item, number % 2 == 0, repeat, "?") for repeat in range(2)]
    return found


def test_new_questions_are_true_new_and_of_the_kind_asked_for(parents, tmp_path):
    known = Known(1.0)
    for parent in parents:
        known.add(parent.item.images, parent.item.question)
    drafts = list(augmentor("grounded")(Wanted(parents, known, tmp_path, 0, 1, 2)))
    assert len(drafts) == len(parents)
    good = [draft for draft in drafts if not draft.problem]
    assert len(good) > 0.9 * len(drafts)
    assert len({(draft.parent.item.images, draft.question) for draft in good}) == len(good)
    for draft in good:
        assert truth(Image.open(draft.parent.item.images[0]).convert("RGB"), draft.question) == draft.reference
        assert not known.near(draft.parent.item.images, draft.question)
    starts = [(d.question.split()[:2] == d.parent.item.question.split()[:2]) for d in good if d.parent.hard]
    assert sum(starts) / len(starts) > 0.6  # difficult ones ask in the same way again


def test_what_is_absent_is_asked_for_as_often_as_what_is_there(parents, tmp_path):
    drafts = list(augmentor("grounded")(Wanted(parents, Known(1.0), tmp_path, 0, 1, 2), absent=0.5))
    assert len({(draft.parent.item.images, draft.question) for draft in drafts}) == len(drafts) == len(parents)
    thing = f"(?:(?:{'|'.join(COLORS)}) )?(?:shape|{'|'.join(SHAPES)})"
    found: Counter[tuple[str, bool]] = Counter()
    for draft in drafts:
        assert truth(Image.open(draft.parent.item.images[0]).convert("RGB"), draft.question) == draft.reference
        if asks := re.fullmatch(rf"(is there a) {thing}\?|(how many) {thing}s are there\?", draft.question):
            found[asks[1] or asks[2], draft.reference in ("no", "0")] += 1
    assert found.total() > 0.9 * len(parents)
    for form in ("is there a", "how many"):
        assert found[form, True] > 10
        assert abs(found[form, True] - found[form, False]) <= 0.05 * len(parents)  # by parents left without a pair


def test_a_model_is_asked_for_what_is_absent_as_often_as_for_what_is_there(parents, oracle, tmp_path):
    model = ModelSection.model_validate({"endpoint": {"url": oracle, "model": "oracle"}})
    wanted = Wanted(parents[:20], Known(1.0), tmp_path, 0, 1, 0)
    prompts = [draft.prompt.split()[0] for draft in augmentor("llm")(wanted, model=model, absent=0.2) if draft.prompt]
    assert prompts.count("compete_presence") > 0
    with Store(tmp_path / "augment") as store:
        asked = [str(one.request) for one in store.entries() if one.request["id"] != "without"]  # but the probe
    assert sum("easily taken to be there" in one for one in asked) == 4
    assert sum("easily overlooked" in one for one in asked) == 4
    assert len(asked) == 20
    blind = ModelSection.model_validate({"language": {"source": "gguf:x"}})
    with pytest.raises(ConfigError, match="does not see what is absent"):
        list(augmentor("llm")(wanted, model=blind, absent=0.2))


def test_more_than_half_absent_cannot_be_balanced(parents, tmp_path):
    with pytest.raises(ConfigError, match=r"absent is 0\.6"):
        list(augmentor("grounded")(Wanted(parents, Known(1.0), tmp_path, 0, 1, 2), absent=0.6))


def test_a_question_that_the_tools_do_not_know_is_said_to_be_none(parents, tmp_path):
    strange = Parent(Item("x", "who painted this?", parents[0].item.images), True, 0, "?")
    (draft,) = augmentor("grounded")(Wanted([strange], Known(1.0), tmp_path, 0, 1, 2))
    assert draft.question == ""
    assert "do not know the parent's question" in draft.problem


def test_what_nearly_says_a_question_again_goes_and_the_reason_names_it(tmp_path):
    known, gone = Known(0.7), Gone(RejectedLog(tmp_path / "log.jsonl"))
    pool = Item("p", "what colour is the large ball on the left?", ("one.png",))
    remember(known, pool)
    drafts = [
        Draft(Parent(pool, True, n, "?"), question)
        for n, question in enumerate(
            ["what colour is the big ball on the left?", "how many people wear a hat?", "how many people wear hats?"]
        )
    ]
    other = Draft(Parent(Item("q", "who?", ("two.png",)), True, 0, "?"), "what colour is the large ball on the left?")
    kept = formed([*drafts, other], known, 1, "test", gone)
    assert [item.question for item in kept] == [
        "how many people wear a hat?",
        other.question,
    ]  # it is of another picture
    assert gone.counts == {"near-duplicate": 2}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert reasons[0] == f"'what colour is the big ball on the left?' says {pool.question!r} again"


def outcome(name: str, kind: Kind) -> Outcome:
    return Outcome(name, kind, "t", "s", None if kind is Kind.UNSCORED else (9.0, 1.0))


def test_the_hard_share_rises_by_round_and_nothing_else_is_a_parent():
    items = {name: Item(name, "q", ()) for name in "abcde"}
    outcomes = [outcome("a", Kind.HARD), outcome("b", Kind.EASY), outcome("c", Kind.WIN), outcome("d", Kind.WEAK),
                outcome("e", Kind.UNSCORED)]  # fmt: skip
    for round, hard in ((1, 5), (2, 8), (3, 8)):
        found = drawn(config(), round, items, outcomes)
        assert [parent.item.id for parent in found] == ["a"] * hard + ["b"] * (10 - hard)
        assert [parent.number for parent in found[:hard]] == list(range(hard))


@pytest.mark.parametrize("kind", [Kind.HARD, Kind.EASY])
def test_what_one_kind_lacks_is_made_of_the_other(kind):
    items = {name: Item(name, "q", ()) for name in "ab"}
    found = drawn(config(), 1, items, [outcome("a", kind), outcome("b", Kind.WIN)])
    assert [(parent.item.id, parent.hard, parent.number) for parent in found] == [
        ("a", kind is Kind.HARD, number) for number in range(10)
    ]
    assert drawn(config(), 1, items, [outcome("b", Kind.WIN)]) == []


def test_a_round_learns_the_new_a_share_of_the_old_and_no_answer_that_lost():
    pool = [Item(f"{round}.{n}", "q", (f"{n % 2}.png",), round=round) for round in range(3) for n in range(10)]
    history = [
        [outcome("0.0", Kind.WIN), outcome("0.1", Kind.WEAK), outcome("0.2", Kind.WIN)],
        [outcome("0.1", Kind.UNSCORED), outcome("0.2", Kind.EASY), outcome("0.3", Kind.UNSCORED)],
    ]
    whole = {item.id for item in rows_of(pool, history, 3, 1.0, 0)}
    assert whole == {item.id for item in pool} - {"0.0", "0.1"}
    half = rows_of(pool, history, 3, 0.5, 0)
    assert {item.id for item in half if item.round == 2} == {f"2.{n}" for n in range(10)}
    assert sum(item.round < 2 for item in half) == 9
    assert [item.images for item in half] == sorted((item.images for item in half), key=[i.images for i in half].index)


def test_a_picture_in_both_is_found_in_another_file_format_and_named(tmp_path):
    picture = scene("train", 0, 0, 2).image()
    for name, kind in (("pool", "PNG"), ("held", "BMP")):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        (tmp_path / f"{name}.img").write_bytes(buffer.getvalue())
        (tmp_path / f"{name}.jsonl").write_text(
            f'{{"id": "{name}7", "images": ["{name}.img"], "turns": [{{"role": "user", "text": "what?"}}]}}\n'
        )

    def read(name: str):
        sources = [SourceSection.model_validate({"source": "jsonl", "path": str(tmp_path / f"{name}.jsonl")})]
        return items_of(sources, name, tmp_path / "images", RejectedLog(tmp_path / "log.jsonl"), True, True)

    (items, trained), (_, held) = read("pool"), read("held")
    assert items[0].reference is None
    with pytest.raises(ConfigError, match=r"share 1 pictures \(held/held7 = pool/pool7\)"):
        require_apart(held, trained, "pool")


def test_a_row_without_a_picture_is_set_aside_since_none_keeps_it_out_of_the_held_out_split(tmp_path):
    (tmp_path / "picture.png").write_bytes(scene("train", 0, 0, 2).png())
    rows = [
        {"id": f"r{n}", "images": ["picture.png"] * (n < 2), "turns": [{"role": "user", "text": "what?"}]}
        for n in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [SourceSection.model_validate({"source": "jsonl", "path": str(tmp_path / "rows.jsonl")})]
    log = RejectedLog(tmp_path / "log.jsonl")
    items, _ = items_of(sources, "held_out", tmp_path / "images", log, True, True)
    assert [item.id for item in items] == ["h0.0", "h1.0"]
    assert summary(log.path) == {"no picture": 1}
    assert (log.seen, log.bad) == (3, 1)


def test_only_the_first_question_of_a_dialogue_is_taken_where_they_hang_together(tmp_path):
    sources = [SourceSection.model_validate({"source": "scenes", "count": 2, "grid": 2})]
    log = RejectedLog(tmp_path / "log.jsonl")
    alone, _ = items_of(sources, "pool", tmp_path / "images", log, True, True)
    first, _ = items_of(sources, "pool", tmp_path / "images", log, False, False)
    assert [item.id for item in first] == ["p0.0", "p1.0"]
    assert len(alone) == 20
    assert first[0].reference is None
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert Path(alone[0].images[0]).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "one of pretraining and start"),
        ({"feedback": "mutual"}, "needs teacher_training"),
        ({"teacher": {"language": {"source": "gguf:x"}}}, "has to see images"),
        ({"augment": {"name": "grounded", "hard_share": [1.5]}}, "0 to 1"),
        ({"labels": False}, "labels is false and judge.model is missing"),
        ({"judge": {"form": "digit"}}, "form digit and no model"),
        ({"filters": {"grounding": {"language": {"source": "gguf:x"}}}}, r"filters\.grounding has to see images"),
        ({"refine": {"tries": 2, "temperature": 0}}, "tries 2 at temperature 0"),
    ],
)
def test_configs_that_cannot_run_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_an_unknown_augmentor_or_option_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean grounded"):
        check_augmentor(config(augment={"name": "groundet"}))
    with pytest.raises(ConfigError, match=r"augment\.modell is not a field of llm"):
        check_augmentor(config(augment={"name": "llm", "modell": {}}))


SEES = {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
KEYLESS = {"endpoint": SEES["endpoint"] | {"api_key_env": "NOT_SET_HERE"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"name": "grounded", "absent": 0.9}}, r"augment\.absent is 0\.9; allowed: 0 to 0\.5"),
        ({"augment": {"name": "llm", "model": {"endpont": {}}}}, r"model\.endpont is .* Did you mean endpoint"),
        ({"augment": {"name": "llm", "model": {}}}, r"augment\.model is \{\}: needs exactly one of endpoint"),
        ({"augment": {"name": "llm", "model": SEES}}, r"augment\.name is llm, .* judge\.model is missing"),
        (
            {"augment": {"name": "llm", "model": {"language": {"source": "gguf:x"}}, "absent": 0.2},
             "judge": {"model": SEES}},
            r"augment\.absent is 0\.2 and augment\.model a language model",
        ),
        (
            {"judge": {"model": KEYLESS}},
            r"judge\.model\.endpoint\.api_key_env names NOT_SET_HERE, which is not set; export",
        ),
        (
            {"augment": {"name": "grounded", "rewrite": KEYLESS}},
            r"augment\.rewrite\.endpoint\.api_key_env names NOT_SET_HERE",
        ),
    ],
)  # fmt: skip
def test_what_no_round_could_end_with_is_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        compete(config(out=str(tmp_path / "out"), **changes), launch=lambda *_: pytest.fail("a training began"))
    assert not (tmp_path / "out").exists()


def test_an_augmentor_of_another_package_is_known_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "ours-1.0.dist-info").mkdir(parents=True)
    (package / "ours-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    (package / "ours-1.0.dist-info" / "entry_points.txt").write_text(
        "[mmkd.augmentors]\nagain = our_augmentors:again\nnone = our_augmentors:NUMBER\n"
    )
    (package / "our_augmentors.py").write_text(
        "from mmkd.synthesis.competing.augmentors import Draft\n"
        "NUMBER = 3\n"
        "def again(wanted, suffix: str = 'Say why.'):\n"
        "    return (Draft(one, f'{one.item.question} {suffix}', one.item.reference) for one in wanted.parents)\n"
    )
    monkeypatch.syspath_prepend(str(package))
    own = config(augment={"name": "again", "count": 2, "suffix": "And why?"}, filters={"similarity": 1.0})
    check_augmentor(own)
    items = {"a": Item("a", "what colour is it?", ("a.png",), reference="red", answer="red")}
    log, told = RejectedLog(tmp_path / "log.jsonl"), "mmkd.synthesis.competing.augmenting.answered_well"
    monkeypatch.setattr(told, lambda config, out, items, teacher, log: list(items))
    grown = grow(own, tmp_path, 1, list(items.values()), [outcome("a", Kind.HARD)], own.teacher, log)
    assert [item.question for item in grown.items] == ["what colour is it? And why?"]
    with pytest.raises(ConfigError, match=r"augment\.sufix is not a field of again\. Did you mean suffix"):
        check_augmentor(config(augment={"name": "again", "sufix": "x"}))
    with pytest.raises(ConfigError, match="Did you mean again"):
        check_augmentor(config(augment={"name": "agian"}))
    with pytest.raises(ConfigError, match=r"our_augmentors:NUMBER.* is a int; allowed: a function"):
        check_augmentor(config(augment={"name": "none"}))


def test_a_folder_takes_a_longer_competition_and_no_other(tmp_path):
    require_same(tmp_path, config(), {})
    require_same(tmp_path, config(rounds=9), {})
    with pytest.raises(ConfigError, match=r"other settings: competition\.gap"):
        require_same(tmp_path, config(gap=2.0), {})
