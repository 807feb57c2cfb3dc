"""Questions without a program, asked again with what held for others."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from pydantic import ValidationError

from mmkd.data.record_files import jsonl
from mmkd.synthesis.programs.making.examples import examples
from mmkd.synthesis.programs.making.run import make_programs
from tests.synthesis.programs.making.conftest import reply
from tests.synthesis.programs.making.scripted import ScriptedWriter
from tests.synthesis.programs.making.test_kill import ended, kept, start, tried


@pytest.fixture
def hard(rows) -> set[str]:
    """Questions whose first samples are no programs."""
    return set(sorted({row.turns[0].text for row in rows})[::2])


def test_what_held_for_other_questions_is_shown_and_only_what_has_no_program_is_asked(config, rows, hard, tmp_path):
    asked: Counter[tuple[str, int]] = Counter()
    chats = []

    def rule(question: str, seed: int) -> str:
        asked[question, seed] += 1
        if question not in hard:
            return reply(question, seed)
        if asked[question, seed] == 1:
            return "return ("
        chats.append(server.last["messages"])
        return reply(question, seed)

    with ScriptedWriter(rule) as server:
        writer = {"endpoint": {"url": server.url, "model": "scripted", "concurrency": 1}}
        first = make_programs(config(tmp_path / "once", writer=writer)).yields["all"]
        asked.clear()
        settings = config(tmp_path / "again", writer=writer, again={"times": 2, "examples": 4})
        made = make_programs(settings)
        after = dict(asked)
        assert make_programs(settings).yields == made.yields
        assert dict(asked) == after  # gone on with, nothing is asked once more

    whole = make_programs(config(tmp_path / "whole")).yields["all"]  # by a writer that finds none of them hard
    assert first["verified"] < made.yields["all"]["verified"] == whole["verified"]
    times = {question: count for (question, seed), count in after.items() if seed == 0}
    unmoved = {one for one, count in times.items() if count == 3}  # no program will ever hold for these
    assert {one for one, count in times.items() if count > 1} >= hard
    assert len(unmoved) <= len(rows) - whole["verified"]
    ours, held = {one.question for one in examples()[1]}, {row.turns[0].text for row in rows} - hard
    shown = [[turn["content"].removeprefix("Question: ") for turn in chat if turn["role"] == "user"] for chat in chats]
    assert {len(questions) for questions in shown} == {4 + 1}
    assert {one for questions in shown for one in questions[:-1]} <= ours | held | hard
    assert any(set(questions[:-1]) & held - ours for questions in shown)
    prompts = {}
    for record in jsonl(str(made.file)):
        if record.provenance.program is not None:
            prompts.setdefault(record.turns[0].text in hard, set()).add(record.provenance.prompt_hash)
    assert prompts[True].isdisjoint(prompts[False])


def test_killed_while_it_asks_again_it_ends_with_the_same_records_and_asks_nothing_twice(config, hard, tmp_path):
    def rule(question: str, seed: int) -> str:
        examples = sum(turn["role"] == "assistant" for turn in server.last["messages"])
        return "return (" if question in hard and examples == 5 else reply(question, seed)

    with ScriptedWriter(rule, delay=0.01) as server:
        fields = {
            "writer": {"endpoint": {"url": server.url, "model": "scripted", "concurrency": 1}}, "again": {"examples": 4}
        }  # fmt: skip
        assert ended(start(config(tmp_path / "straight", **fields))) == 0
        ends = len(kept(tmp_path / "straight")) + len(tried(tmp_path / "straight"))
        draw, out, kills = random.Random(3), tmp_path / "killed", 8
        for moment in sorted(draw.sample(range(100, ends - 5), kills)):  # the first 100 are asked before anything runs
            server.asked.clear()
            before, process = kept(out), start(config(out, **fields))
            while process.is_alive() and len(kept(out)) + len(tried(out)) < moment:
                time.sleep(0.002)
            process.kill()
            process.join()
            assert not before & {key.rsplit("-", 1)[0] for _, _, key in server.asked}
        assert ended(start(config(out, **fields))) == 0
    for name in ("records.jsonl", "programs.jsonl", "writer.jsonl", "yield.json"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_where_nothing_held_nothing_is_asked_again(config, tmp_path):
    with ScriptedWriter(lambda question, seed: "return (") as server:
        writer = {"endpoint": {"url": server.url, "model": "scripted"}}
        made = make_programs(config(tmp_path / "out", writer=writer, samples=1, again={}))
        assert len(server.asked) == 20
    assert made.yields["all"]["verified"] == 0


def test_invented_questions_are_neither_asked_again_nor_judged(config, writer, tmp_path):
    with pytest.raises(ValidationError, match="judge and invent do not go together"):
        config(tmp_path / "out", judge={"endpoint": {"url": writer.url, "model": "wise"}}, invent={})
    with pytest.raises(ValidationError, match="again and invent do not go together"):
        config(tmp_path / "out", again={}, invent={})
