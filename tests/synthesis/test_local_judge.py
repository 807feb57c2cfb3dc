"""A judge of our own: answers of known quality become records, a run learns from them, and its grades are read."""

from __future__ import annotations

import json
import math
import weakref
from collections import Counter, defaultdict

import pytest
import torch
import yaml
from typer.testing import CliRunner

from mmkd.cli import app
from mmkd.config.judge_schema import JudgeConfig
from mmkd.config.load import load_as
from mmkd.config.synthesis_schema import LanguageModelSection
from mmkd.data.record_files import jsonl
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Call
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.judge_jobs import judge_calibration, judge_records
from mmkd.synthesis.judging.graded import graded
from mmkd.synthesis.judging.grades import GradeJudge, digit_of, expectation
from mmkd.synthesis.judging.judge import Item
from mmkd.synthesis.local_models import language_model
from mmkd.synthesis.requests import Sampling, ScoredToken, TokenScore
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy
from tests.train.conftest import save_tiny_model

COLORS = ["red", "green", "blue", "grey"]


def scored(token: str, **top: float) -> ScoredToken:
    """A token and the probabilities of the likeliest; `_7` stands for " 7", d7 for "7"."""
    likeliest = [
        TokenScore(token=name.replace("_", " ").removeprefix("d"), logprob=math.log(p)) for name, p in top.items()
    ]
    return ScoredToken(token=token, logprob=-0.1, top_logprobs=likeliest)


def test_a_score_is_the_mean_digit_by_probability():
    space = scored(" ", _=0.99)
    assert expectation([space, scored("7", d7=0.6, d3=0.2, x=0.1)]) == pytest.approx((7 * 0.6 + 3 * 0.2) / 0.8)
    assert expectation([scored("7", d7=0.3, _7=0.3, d0=0.2)]) == pytest.approx(7 * 0.6 / 0.8)
    assert expectation([scored("7", d7=0.3, yes=0.6)]) is None  # this model does not reply with grades
    assert expectation([space]) is None
    assert expectation([]) is None
    assert [digit_of(text) for text in ("7", " 7\n", "10", "7.", "", "٣", "-1")] == [7, 7, *[None] * 5]


@pytest.mark.parametrize("expected", [True, False])
@pytest.mark.parametrize(("reply", "score"), [("9", 10.0), ("0", 1.0), (" 4", 5.0), ("10", None), ("7/9", None)])
def test_what_is_no_digit_is_no_score(endpoint, tmp_path, reply, score, expected):
    """This server gives no log-probabilities, so no expectation can be made of what it says."""
    with (
        FaultProxy(None, content=lambda body: reply) as proxy,
        Asker(Endpoint(endpoint(proxy.url)), Store(tmp_path)) as asker,
    ):
        [verdict] = GradeJudge(asker, expected=expected).judge([Item("i", "Which?", ("red", "blue"), reference="red")])
        assert "red" not in str(proxy.seen[1].body["messages"][0])
        assert [seen.body.get("top_logprobs") for seen in proxy.seen] == [20 if expected else None] * 2
    wanted = None if expected or score is None else (score, score)
    assert verdict.scores == wanted
    assert wanted or verdict.error.startswith("no grade")


def test_log_probabilities_of_a_model_here_are_those_of_its_own_logits(language):
    backend = language_model(LanguageModelSection(source=f"hf:{language}", batch_size=4))
    calls = [
        Call(text, (Turn("user", text),), (), Sampling(temperature=heat, max_tokens=3, log_probs=5))
        for text, heat in (("What is this?", 0.0), ("b" * 40, 1.0))
    ]
    calls.append(Call("plain", (Turn("user", "Hello"),), (), Sampling(max_tokens=3)))
    first, second, plain = backend.generate(calls)
    assert plain.tokens is None
    for call, reply in ((calls[0], first), (calls[1], second)):
        assert 0 < len(reply.tokens) <= 3
        inputs, _ = backend._prepare(call)
        with torch.inference_mode():
            naive = backend._generator(**inputs).logits[0, -1].float().log_softmax(-1)
        token = reply.tokens[0]
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(naive.topk(5).values.tolist(), abs=2e-2)
    assert first.tokens[0].logprob == first.tokens[0].top_logprobs[0].logprob


@pytest.fixture
def config(tmp_path, picture):
    """`config(**changes)`: 24 pictures with two questions each; what a model said to half of them."""
    rows, said = [], []
    for number in range(24):
        color = COLORS[number % 4]
        turns = [Turn("user", "What color is it?"), Turn("assistant", color)]
        turns += [Turn("user", "Is it red?"), Turn("assistant", "yes" if color == "red" else "no")]
        rows.append(Record(f"r{number}", turns, [picture(number)], "t", "s", Provenance(license="MIT")))
        if number % 2:
            said.append(Record(f"r{number}", [turns[0], Turn("assistant", "Green.")], [picture(number)], "t", "s"))
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "said.jsonl", said)

    def build(**changes) -> JudgeConfig:
        section = {"data": [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}], "out": str(tmp_path / "judge")}
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump(section | {"hold_out": 0.25} | changes))
        return load_as(tmp_path / "judge.yaml", [], JudgeConfig)

    return build


def test_right_wrong_and_a_models_answers_become_records_by_their_labels(config, tmp_path):
    said = judge_records(config(answers=[str(tmp_path / "said.jsonl")], wrong=2))
    records = jsonl(str(tmp_path / "judge" / "records.jsonl"))
    grades: defaultdict[str, set[str]] = defaultdict(set)
    kinds = Counter(record.task for record in records)
    for record in records:
        shown = record.turns[1].text
        answer, grade = shown.split("Answer: ")[1].split("\n")[0], record.turns[2].text
        grades[record.task].add(grade)
        if record.task == "grade model":
            assert answer == "Green."
            assert grade == ("9" if int(record.id.split("/")[1][1:]) % 4 == 1 else "0")
    assert grades == {"grade right": {"9"}, "grade wrong": {"0"}, "grade model": {"0", "9"}}
    # Two wrong colours for each right one, but only one other answer to a question of yes and no.
    assert kinds["grade wrong"] == 1.5 * kinds["grade right"]
    assert kinds["grade right"] < 48  # some pictures are held out
    assert f"{len(records):,} graded answers ({kinds['grade right']} right" in said
    assert records[0].provenance.license == "MIT"


def test_answers_to_other_records_are_refused(config, tmp_path):
    """Records that `turns` has joined have other ids: none of their answers would be graded, with no word."""
    row = Record("r0+1", [Turn("user", "What color is it?"), Turn("assistant", "Green.")], [], "t", "s")
    write_jsonl(tmp_path / "joined.jsonl", [row])
    with pytest.raises(DataError, match=r"answers: .*joined\.jsonl has no record of the ids"):
        judge_records(config(answers=[str(tmp_path / "said.jsonl"), str(tmp_path / "joined.jsonl")]))


def test_records_of_two_sources_that_are_called_alike_are_not_taken_for_one(config, tmp_path):
    rows = {"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    judge_records(config())
    once = {record.id for record in jsonl(str(tmp_path / "judge" / "records.jsonl"))}
    judge_records(config(data=[rows, rows]))
    twice = [record.id for record in jsonl(str(tmp_path / "judge" / "records.jsonl"))]
    assert len(set(twice)) == len(twice) == 2 * len(once)
    assert once < set(twice)  # those of the first are called as ever


def table(told: str) -> list[list[str]]:
    """Lines of the terminal as words, without the frames of tables."""
    return [line.split() for line in told.replace("│", " ").splitlines()]


def test_a_teacher_that_sees_the_right_answer_grades_what_models_said(config, endpoint, tmp_path, capsys):
    def content(body) -> str:
        assert "known to be right" in str(body["messages"][1])
        return '{"reason": "nearly", "score": 6}'

    with FaultProxy(None, content=content) as proxy:
        teacher = {"model": {"endpoint": endpoint(proxy.url).model_dump() | {"check_images": False}}}
        judge_records(config(answers=[str(tmp_path / "said.jsonl")], teacher=teacher))
        assert 0 < len(proxy.seen) <= 12
        assert ["prompt", "tokens", str(10 * len(proxy.seen))] in table(capsys.readouterr().err)
    records = jsonl(str(tmp_path / "judge" / "records.jsonl"))
    grades = {record.turns[2].text for record in records if record.task == "grade model"}
    # (1 + 6) / 2 and (10 + 6) / 2 on 1 to 10, as digits from 0 to 9
    assert grades == {"3", "7"}


def test_a_judge_of_words_is_calibrated_on_pairs_in_both_orders(config, endpoint, tmp_path, capsys):
    """This one gives whatever stands first more."""
    with FaultProxy(None, content=lambda body: '{"reason": "r", "first": 9, "second": 3}') as proxy:
        model = {"endpoint": endpoint(proxy.url).model_dump() | {"check_images": False}}
        trust = judge_calibration(config(form="words", model=model, hold_out=0.5, max_tokens=77))
        assert {seen.body["max_tokens"] for seen in proxy.seen} == {77}
        assert not any("known to be right" in str(seen.body) for seen in proxy.seen)
        assert len(proxy.seen) == 2 * trust.pairs > 0
        assert ["answer", "tokens", str(5 * len(proxy.seen))] in table(capsys.readouterr().err)
    found = json.loads((tmp_path / "judge" / "calibration.json").read_text())
    assert found["compared"] == found["disagreed"] == trust.pairs
    assert "change their winner with the order" in found["order"]
    assert found["items"] == 2 * trust.pairs
    assert found["preferred"] == 0.5


def test_records_of_a_judge_have_a_card_and_no_more_than_one_answer_is_held(config, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0

    def watched(*args):
        nonlocal most
        for one in graded(*args):
            alive.append(weakref.ref(one))
            most = max(most, sum(ref() is not None for ref in alive))
            yield one

    monkeypatch.setattr("mmkd.synthesis.judge_jobs.graded", watched)
    judge_records(config(answers=[str(tmp_path / "said.jsonl")]))
    assert len(alive) > 50
    assert most <= 3
    card = (tmp_path / "judge" / "card.md").read_text()
    assert "answers of known quality" in card
    assert "| graded by | labels |" in card
    assert "MIT" in card


def test_a_missing_judge_is_told(config):
    with pytest.raises(ConfigError, match="model is missing; calibrate needs the judge"):
        judge_calibration(config())


@pytest.mark.slow
def test_an_ordinary_run_on_the_records_is_a_judge(config, tmp_path):
    import ranks  # by its name, as forked ranks import it; tests.train.conftest has put it within reach

    save_tiny_model(tmp_path / "start", seed=0, layers=2, voco=None, width=64)
    judge_records(config())
    run = {
        "run": {"dir": str(tmp_path / "run"), "seed": 0},
        "student": {"init": str(tmp_path / "start")},
        "data": {
            "mixture": [{"source": "jsonl", "path": str(tmp_path / "judge" / "records.jsonl")}],
            "max_length": 512,
        },
        "stages": [{"name": "judge", "steps": 40, "learning_rate": 1e-2, "batch_size": 8, "read": ["full"]}],
        "training": {"precision": "fp32", "device": "cpu"},
    }
    ranks.run(run, world=1)
    config(model={"vlm": {"model": str(tmp_path / "run" / "model")}})
    said = CliRunner().invoke(app, ["judge", "calibrate", str(tmp_path / "judge.yaml")], catch_exceptions=False)
    found = json.loads((tmp_path / "judge" / "calibration.json").read_text())
    assert str(tmp_path / "judge" / "calibration.json") in said.output
    assert found["unscored"] == 0  # it has learned to reply with digits, and log-probabilities come with them
    assert found["items"] > 4
    assert found["pairs"] == found["items"] / 2
    assert 0 <= found["preferred"] <= 1
