"""From scores to kinds of items; what has no verdict is never a score."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from rich.console import Console

from mmkd.config.compete_schema import CompeteConfig
from mmkd.data.rejected import RejectedLog, summary
from mmkd.errors import DataError
from mmkd.synthesis.competing.assessing import Kind, Outcome, against_labels, assess, good_enough, kind_of, standing
from mmkd.synthesis.competing.card import card
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.items import Item, read_rows, write_items
from mmkd.synthesis.competing.pairs import preferences
from mmkd.synthesis.competing.summary import stopped_moving, table


@pytest.fixture
def config(tmp_path) -> CompeteConfig:
    return CompeteConfig.model_validate(
        {
            "out": str(tmp_path),
            "start": "student",
            "training": {"config": "training"},
            "teacher": {"vlm": {"model": "teacher"}},
            "pool": [{"source": "scenes"}],
            "held_out": [{"source": "scenes", "split": "validation"}],
            "augment": {"name": "grounded"},
        }
    )


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ((9.0, 8.0), Kind.HARD),  # the gap itself is enough
        ((9.0, 8.5), Kind.EASY),
        ((7.0, 1.0), Kind.HARD),
        ((6.5, 1.0), Kind.WEAK),  # far ahead, and still not good enough to learn from
        ((6.5, 6.5), Kind.WEAK),
        ((9.0, 10.0), Kind.WIN),
        ((2.0, 4.0), Kind.WIN),
        (None, Kind.UNSCORED),
    ],
)
def test_gap_and_floor_decide(scores, kind):
    assert kind_of(scores, gap=1.0, floor=7.0) is kind


def item(number: int, answer: str, reference: str | None) -> Item:
    return Item(f"i{number}", "what is it?", (), reference=reference, answer=answer)


def test_labels_score_both_sides(config, tmp_path):
    items = [item(0, "red", "red"), item(1, "blue", "red"), item(2, "red", "red"), item(3, "red", None)]
    said = {"i0": "no", "i1": "Red.", "i2": "red", "i3": "red"}
    outcomes, _ = assess(config, tmp_path, items, said, RejectedLog(tmp_path / "log.jsonl"))
    assert [outcome.kind for outcome in outcomes] == [Kind.HARD, Kind.WIN, Kind.EASY, Kind.UNSCORED]
    assert summary(tmp_path / "log.jsonl") == {"no verdict": 1}
    found = standing(outcomes)
    assert (found.scored, found.unscored, found.wins, found.ties, found.losses) == (3, 1, 1, 1, 1)
    assert found.win_rate == 0.5
    assert found.hard_share == pytest.approx(1 / 3, abs=1e-4)
    assert found.teacher == found.student == 7.0
    pairs = list(preferences(outcomes, {one.id: one for one in items}, 7.0, tmp_path))
    assert [(pair["id"], pair["winner"]) for pair in pairs] == [("i0", "teacher"), ("i1", "student")]
    assert pairs[1]["chosen"][0]["content"] == "Red."
    assert pairs[1]["rejected"][0]["content"] == "blue"


def test_a_win_below_the_floor_or_decided_by_the_order_makes_no_pair(tmp_path):
    below = Outcome("a", Kind.WIN, "t", "s", (2.0, 5.0))
    turned = Outcome("b", Kind.WIN, "t", "s", (7.0, 9.0), agree=False)
    assert list(preferences([below, turned], {"a": item(0, "t", None), "b": item(1, "t", None)}, 7.0, tmp_path)) == []


def test_ten_per_cent_without_a_verdict_stop_the_round(config, tmp_path):
    items = [item(n, "red", "red" if n % 5 else None) for n in range(100)]
    with pytest.raises(DataError, match="more than 10"):
        assess(config, tmp_path, items, {one.id: "red" for one in items}, RejectedLog(tmp_path / "log.jsonl"))


def test_a_wrong_teacher_is_not_learned_from(config, tmp_path):
    items = [item(0, "red", "red"), item(1, "blue", "red")]
    assert list(good_enough(config, tmp_path, items, RejectedLog(tmp_path / "log.jsonl"))) == items[:1]
    assert summary(tmp_path / "log.jsonl") == {"teacher below the floor": 1}


def test_a_judge_is_compared_with_the_labels_that_are_there():
    items = {one.id: one for one in (item(0, "red", "red"), item(1, "blue", "red"), item(2, "red", None))}
    judged = [
        Outcome("i0", Kind.HARD, "red", "no", (9.0, 2.0)),
        Outcome("i1", Kind.EASY, "blue", "red", (8.0, 8.0)),  # one of both is wrong
        Outcome("i2", Kind.HARD, "red", "no", (9.0, 2.0)),  # nobody knows
    ]
    found = against_labels(judged, items)
    assert found is not None
    assert (found["answers"], found["agreement"]) == (4, 0.75)
    assert 0 < (found["tau"] or 0) < 1
    assert against_labels(judged[2:], items) is None
    assert against_labels([Outcome("i0", Kind.UNSCORED, "red", "no", None)], items) is None


@pytest.mark.parametrize("form", ["words", "digit"])
def test_the_card_says_that_a_judge_of_words_was_shown_the_labels_it_is_held_against(config, tmp_path, form):
    write_items(tmp_path / "pool" / "0.jsonl", [item(0, "red", "red")])
    held = asdict(standing([Outcome("i0", Kind.HARD, "red", "no", (9.0, 2.0))]))
    held["judge_against_labels"] = {"answers": 2, "tau": 1.0, "agreement": 1.0}
    row = {"round": 0, "trained": 0, "held_out": held, "compared": 0, "disagreed": 0, "pool": 1}
    judge = {"model": {"vlm": {"model": "judge"}}, "form": form}
    told = card(CompeteConfig.model_validate(config.model_dump() | {"judge": judge}), tmp_path, [row])
    assert "Kendall tau-b 1.0,\n100% in the same third of the scale." in told
    assert ("It was shown the label" in told) == (form == "words")


def test_the_table_of_a_folder_named_like_markup(capsys):
    Console().print(table([], "runs[/b]: teacher against student"))
    assert "runs[/b]: teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rates", "stop"),
    [
        ([0.1], False),
        ([0.1, 0.1], False),
        ([0.1, 0.1, 0.1], True),
        ([0.1, 0.2, 0.2], False),
        ([0.1, 0.2, 0.2, 0.15], True),
    ],
)
def test_it_stops_when_two_rounds_bring_nothing(rates, stop):
    assert stopped_moving(rates, least=0.01, patience=2) is stop


def test_a_competition_whose_win_rate_stands_still_has_no_further_round(config, tmp_path, monkeypatch, capsys):
    stop = config.stop.model_copy(update={"least": 0.01, "patience": 2})
    one = Competition(config.model_copy(update={"rounds": 5, "stop": stop}), {}, tmp_path, lambda *_: None)
    for number in range(6):
        write_items(one._pool(number), [Item("p", "what?", ())])
    rates = iter([0.1, 0.2, 0.2, 0.15, 0.9, 0.9])
    half = {"compared": 0, "disagreed": 0, "teacher": 9.0, "student": 1.0, "scored": 1, "unscored": 0, "kinds": {}}
    monkeypatch.setattr(one, "_prepare", dict)
    monkeypatch.setattr(one, "_ask_teacher", dict)
    monkeypatch.setattr(one, "_train", lambda number, student: {"model": "m", "rows": 1})
    monkeypatch.setattr(one, "_assess", lambda number, student: half | {"win_rate": 0.5})
    monkeypatch.setattr(one, "_held_out", lambda number, student: half | {"win_rate": next(rates)})
    monkeypatch.setattr(one, "_augment", lambda number: {"drafted": 0, "kept": 0, "gone": {}, "worded": {}, "pool": 1})
    monkeypatch.setattr("mmkd.synthesis.competing.compete.card", lambda *_: "")
    monkeypatch.setattr("mmkd.synthesis.competing.compete.table", lambda *_: "")
    rows = list(read_rows(one.run()))
    assert [row["round"] for row in rows] == [0, 1, 2, 3]  # the third brought nothing, as the second had
    assert rows[-1]["augmented"] is None
    assert "no round after 3" in capsys.readouterr().err
