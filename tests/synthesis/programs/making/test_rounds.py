"""Rounds of self-improvement with a writer of real weights, as small as it may be and still write a program."""

from __future__ import annotations

import json
import time
from multiprocessing import get_context

import pytest
from rich.console import Console
from transformers import Trainer

from mmkd.checkpoints import is_complete, latest_complete
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.making.rounds import _table, make_rounds, merged, taught
from mmkd.synthesis.programs.making.run import Made
from mmkd.synthesis.programs.making.writing import Prompts
from mmkd.synthesis.programs.making.yields import Yield, Yields
from mmkd.synthesis.programs.tools import Toolset
from tests.tiny_writer import PROGRAM, tiny_writer

SCENES = 6


@pytest.fixture
def first_writer(tmp_path) -> str:
    """A decoder that writes PROGRAM whatever it is asked."""
    return tiny_writer(tmp_path)


@pytest.fixture
def config(first_writer, make_scene, tmp_path) -> ProgramsConfig:
    """Two rounds over the same two questions of a few scenes."""
    rows = []
    for number in range(SCENES):
        one = make_scene("train", number, 0)
        for shape in ("circle", "triangle"):
            count = sum(thing.shape == shape for thing in one.things)
            turns = [Turn("user", f"how many {shape}s are there?"), Turn("assistant", str(count))]
            rows.append(Record(f"{one.id}/{shape}", turns, [one.png()], shape))
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return ProgramsConfig.model_validate(
        {
            "writer": {"language": {"source": first_writer, "device": "cpu"}},
            "data": [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}],
            "out": str(tmp_path / "out"),
            "samples": 1,
            "sampling": {"max_tokens": 80},
            "examples": 0,
            "tools": {"names": ["count"]},
            "tune": {"rounds": 1, "steps": 40, "batch_size": 1, "learning_rate": 1e-4, "save_every": 10},
        }
    )


@pytest.mark.slow
def test_rounds_killed_in_the_tuning_go_on_there_and_tell_the_yield_of_each(config, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process = get_context("forkserver").Process(target=make_rounds, args=(config,))
    process.start()
    checkpoints = out / "round-0" / ".writer.checkpoints"
    while process.is_alive() and latest_complete(checkpoints) is None:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert latest_complete(checkpoints) is not None
    assert not is_complete(out / "round-0" / "writer")
    asked = (out / "round-0" / "asked" / "journal.jsonl").read_bytes()

    resumed, train = [], Trainer.train

    def watched(self, resume_from_checkpoint=None, **options):
        resumed.append(resume_from_checkpoint)
        return train(self, resume_from_checkpoint=resume_from_checkpoint, **options)

    monkeypatch.setattr(Trainer, "train", watched)
    made = make_rounds(config)
    assert len(resumed) == 1
    assert resumed[0].startswith(str(checkpoints / "checkpoint-"))
    assert (out / "round-0" / "asked" / "journal.jsonl").read_bytes() == asked  # nothing was asked again
    yields = json.loads((out / "yield.json").read_text())
    assert list(yields) == ["round-0", "round-1"]
    for one in yields.values():
        # The writer has one program for both questions: right for the one, by luck at most for the other.
        assert (one["circle"]["rows"], one["circle"]["verified"]) == (SCENES, SCENES)
        assert (one["triangle"]["rows"], one["triangle"]["verified"]) == (SCENES, 0)
    told = {record.task: record for record in jsonl(str(made.file)) if record.turns[1].rationale is not None}
    assert set(told) == {"circle"}
    assert told["circle"].provenance.program == PROGRAM
    assert told["circle"].provenance.round == 1
    assert told["circle"].provenance.model.startswith(f"local:{out / 'round-0' / 'writer'} ")


def test_the_tables_of_types_named_like_markup(capsys):
    every = Yields()
    every.types["[/INST]"] = Yield(rows=2, verified=1)
    for table in (every.table(), _table({"round-0": every.to_dict()})):
        Console().print(table)
        assert "[/INST]" in capsys.readouterr().out


def test_the_newest_round_of_a_question_teaches_with_as_few_examples_as_asked_for(tmp_path):
    tools, question = Toolset(classical()), "how many circles are there?"

    def lesson(asked: str, program: str) -> Record:
        turns = [*Prompts(tools, 5).turns(asked), Turn("assistant", program)]
        return Record(f"{asked}/{program}", turns, provenance=Provenance(parent=asked))

    made = []
    for number, lessons in enumerate(([lesson(question, "old"), lesson("other", "first")], [
        lesson(question, "new"), lesson(question, "newer")]
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        write_jsonl(folder / "writer.jsonl", lessons)
        made.append(Made(folder / "records.jsonl", {}, 0))
    found = taught(made, 1)
    assert [one.turns[-1].text for one in found] == ["new", "newer", "first"]
    assert found[0].turns[:-1] == list(Prompts(tools, 1).turns(question))
    assert taught(made, 0)[0].turns[:-1] == list(Prompts(tools, 0).turns(question))
    assert taught(made, None)[0].turns[:-1] == list(Prompts(tools, 5).turns(question))


def test_records_that_are_called_alike_all_stay_and_the_last_rationale_counts(tmp_path):
    def made(name: str, *rationales: str | None) -> Made:
        """Of three questions, the first two of which have one name and one text; two pictures are in files."""
        file, (a, b) = tmp_path / name / "records.jsonl", (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
        file.parent.mkdir()
        asked = [("0#0", "what is it?", a), ("0#0", "what is it?", b), ("1#0", "how many?", b"inside")]
        rows = [
            Record(one, [Turn("user", question), Turn("assistant", "x", rationale)], [image])
            for (one, question, image), rationale in zip(asked, rationales, strict=False)
        ]
        write_jsonl(file, rows)
        return Made(file, {}, 0)

    found = list(merged([made("round-0", "one", None, "three"), made("round-1", None, "two"), made("round-2")]))
    assert [(record.id, record.turns[-1].rationale) for record in found] == [
        ("0#0", "one"),
        ("0#0", "two"),
        ("1#0", "three"),
    ]
