"""The whole loop: embedded, served through a proxy that damages replies, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mmkd.cli import app
from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_as
from mmkd.data.record_files import jsonl
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.evolving import journal as journal_file
from mmkd.synthesis.evolving.run import evolve
from tests.synthesis.evolving.fake_writer import said
from tests.synthesis.fault_proxy import FAULTS, FaultProxy
from tests.synthesis.kept_calls import kept_calls

KILLS = int(os.environ.get("MMKD_KILLS", "20"))
RESULTS = ("records.jsonl", "rejected.jsonl", "summary.json", "rounds/1.jsonl", "rounds/2.jsonl")


SEES = {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}


def config(tmp_path, out: str = "out", scenes: int = 4, **fields) -> Path:
    path = tmp_path / f"{out}.yaml"
    data = [{"source": "scenes", "split": "train", "count": scenes, "grid": 2}]
    section = {"data": data, "out": str(tmp_path / out), "rounds": 2, "per_image": 2}
    path.write_text(yaml.safe_dump(section | {"blind": None} | fields))
    return path


def served_by(url: str, **endpoint) -> dict:
    settings = {"url": url, "model": "tiny", "concurrency": 4, "timeout": 20.0, "retry_seconds": 60.0, "license": "MIT"}
    model = {"endpoint": settings | {"structured": "validate"} | endpoint}
    sampling = {"max_tokens": 600}
    return {
        "evolver": {"kind": "llm", "model": model, "sampling": sampling | {"temperature": 1.0}},
        "judge": {"kind": "model", "model": model, "sampling": sampling, "tolerance": 9},
        "blind": {"model": model, "tries": 2},
        "tools": {"detector": "classical"},
    }


def run(path: Path, *overrides: str):
    return evolve(load_as(path, overrides, EvolveConfig))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_embedded_loop_grows_questions_and_says_why_not(make_scene, tmp_path):
    written = run(config(tmp_path, rounds=3))
    out = tmp_path / "out"
    seeds, last = rows(out / "rounds/0.jsonl"), rows(out / "rounds/3.jsonl")
    assert len(seeds) == len(last) == written.questions == 8
    rejected = rows(out / "rejected.jsonl")
    kept = [row for number in (1, 2, 3) for row in rows(out / f"rounds/{number}.jsonl") if row["kept"]]
    assert len(kept) + len(rejected) == 3 * 8
    assert len(kept) > 8
    assert all(row["kind"] and row["reason"] for row in rejected)
    for number in (1, 2, 3):  # each is judged against its parent: the item's newest good version, not the seed
        for before, after in zip(rows(out / f"rounds/{number - 1}.jsonl"), rows(out / f"rounds/{number}.jsonl")):
            assert (after["current"]["parent"] if after["kept"] else after["current"]["id"]) == before["current"]["id"]
    grown = [row for row in kept if row["direction"] == "cognitive"]
    assert grown
    assert all(row["current"]["difficulty"] > row["parent_difficulty"] for row in grown)
    records = jsonl(str(written.file))
    assert len(records) == 4
    assert all(record.provenance.engine == "evolve" and record.images for record in records)
    assert {turn.text for record in records for turn in record.turns if turn.role == "user"} == {
        row["current"]["content"]["question"] for row in last
    }
    card = (out / "card.md").read_text()
    assert f"with {written.questions} questions" in card
    assert all(kind in card for kind in {row["kind"] for row in rejected})


def test_more_rounds_later_equal_all_at_once_and_other_settings_are_refused(make_scene, tmp_path):
    path = config(tmp_path)
    run(path, "rounds=1")
    run(path, "rounds=2")
    run(path, "rounds=2", f"out={tmp_path}/once")
    assert results(tmp_path / "out") == results(tmp_path / "once")
    with pytest.raises(
        ConfigError, match=r"begun with other settings of per_image\. Only out, rounds, versions, chain"
    ):
        run(path, "per_image=1")
    everything = run(path, "versions=all", "chain=true")
    kept = sum(row["kept"] for number in (0, 1, 2) for row in rows(tmp_path / f"out/rounds/{number}.jsonl"))
    assert everything.questions == kept
    told = [turn for record in jsonl(str(everything.file)) for turn in record.turns if "answer: " in turn.text]
    assert told
    (tmp_path / "out/rounds/2.jsonl").write_text('{"item": 1}\n' * 8)
    with pytest.raises(DataError, match=r"2\.jsonl:1 is no outcome"):
        run(path)


def test_records_that_cannot_evolve_are_set_aside(make_scene, picture, tmp_path):
    from mmkd.data.records import Record, Turn

    good = make_scene("train", 0, 0, 2)
    asked, right = good.questions[0].text, good.questions[0].answer
    made = [
        Record("good", [Turn("user", asked), Turn("assistant", right)], [good.png()]),
        Record("two", [Turn("user", asked), Turn("assistant", right)], [good.png(), good.png()]),
        Record("other", [Turn("user", "who painted this?"), Turn("assistant", "nobody")], [good.png()]),
        Record("long", [Turn("user", "x" * 3000), Turn("assistant", "y")], [good.png()]),
    ]
    write_jsonl(tmp_path / "rows.jsonl", made)
    (tmp_path / "known.jsonl").write_text('{"id": "good"}\n{"id": null}\n')
    data = [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}]
    path = config(tmp_path, data=data, annotations=str(tmp_path / "known.jsonl"))
    assert run(path).questions == 1
    assert {row["kind"] for row in rows(tmp_path / "out/set_aside.jsonl")} == {
        "not one image", "nothing to ask about", "no seed", "no annotation"
    }  # fmt: skip
    made[0].images = [make_scene("train", 1, 0, 2).png()]
    write_jsonl(tmp_path / "rows.jsonl", made)
    with pytest.raises(DataError, match="its image changed"):
        run(path, "rounds=3")


def test_rows_none_of_which_can_evolve_are_looked_at_anew_once_they_are_mended(make_scene, tmp_path):
    from mmkd.data.records import Record, Turn

    one = make_scene("train", 0, 0, 2)
    for question, answer in (("who painted this?", "nobody"), (one.questions[0].text, one.questions[0].answer)):
        write_jsonl(
            tmp_path / "rows.jsonl", [Record("a", [Turn("user", question), Turn("assistant", answer)], [one.png()])]
        )
        path = config(tmp_path, data=[{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}])
        if answer == "nobody":
            with pytest.raises(DataError, match=r"no question of 1 records can evolve; see .*set_aside\.jsonl"):
                run(path)
    assert run(path).questions == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"evolver": {"kind": "llm"}}, "needs a model that sees images"),
        ({"evolver": {"kind": "llm", "model": {"language": {"source": "gguf:x"}}}}, "needs a model that sees images"),
        ({"judge": {"kind": "model"}}, "kind model needs a model"),
        ({"judge": {"kind": "model", "model": {"language": {"source": "gguf:x"}}}}, "a judge has to see the image"),
        ({"directions": {"perceptual": 0, "cognitive": 0, "interaction": 0}}, "at least one of the three"),
        ({"blind": {"model": {"language": {"source": "gguf:x"}}, "temperature": 0}}, "more than one try"),
        ({"round": 3}, "rounds"),
        ({"evolver": {"kind": "llm", "model": SEES}}, "evolver.kind is llm and judge.kind tools"),
        (
            {
                "evolver": {"kind": "llm", "model": SEES},
                "judge": {"kind": "model", "model": SEES},
                "tools": {"ocr": True},
            },
            r"tools\.detector is missing\. Name a zero-shot detector",
        ),
    ],
)
def test_configs_that_cannot_run_say_so(tmp_path, fields, words):
    with pytest.raises(ConfigError, match=words):
        run(config(tmp_path, **fields))


def test_whether_items_are_tried_without_the_image_has_to_be_said(tmp_path):
    path = config(tmp_path)
    path.write_text(path.read_text().replace("blind: null\n", ""))
    with pytest.raises(ConfigError, match=r"blind is missing; .* blind: \{model: \.\.\} .* blind: null leaves"):
        load_as(path, [], EvolveConfig)


def test_a_real_server_behind_faults_loses_no_item_and_scores_no_garbage(make_scene, served, tmp_path, record_property):
    draw = random.Random(5)
    faults = cycle(draw.sample(FAULTS, len(FAULTS)))

    def fault(number, body) -> str:
        return next(faults) if draw.random() < 0.25 else ""

    with FaultProxy(served, fault=fault, content=said) as proxy:
        # The proxy shortens prompts for a tiny model, so what it counts says nothing of them.
        written = run(config(tmp_path, **served_by(proxy.url, check_images=False, timeout=5.0)))
        assert {"hang", "drip"} < {seen.fault for seen in proxy.seen}
        record_property("requests", len(proxy.seen))
        record_property("faults", sum(bool(seen.fault) for seen in proxy.seen))
        images = [str(seen.body["messages"]).count("image_url'") for seen in proxy.seen]
        assert {"Found in the image" in str(seen.body) for seen, count in zip(proxy.seen, images) if count} == {
            True,
            False,
        }
    out = tmp_path / "out"
    for number in (1, 2):
        ended = rows(out / f"rounds/{number}.jsonl")
        assert len(ended) == written.questions == 8
        for row in ended:  # kept with a score from both orders, or rejected with a reason; nothing else
            assert (
                row["kept"]
                == (row["current"]["round"] == number)
                == (row["current"]["difficulty"] is not None and not row["kind"])
            )
            assert row["kept"] or (row["kind"] and row["reason"])
    versions = [row for number in (1, 2) for row in rows(out / f"rounds/{number}.jsonl")]
    record_property("items", len(versions))
    record_property("done", sum(row["kept"] for row in versions))
    record_property("rejected", len(rows(out / "rejected.jsonl")))
    kinds = {row["kind"] for row in rows(out / "rejected.jsonl")}
    assert "contradicted by a tool" in kinds
    assert sum(row["kept"] for row in rows(out / "rounds/1.jsonl")) > 1
    assert all(record.provenance.license == "MIT" for record in jsonl(str(written.file)))


def test_garbage_alone_ends_as_rejections(make_scene, tmp_path):
    with FaultProxy(None, content=lambda body: '{"question": "x"') as proxy:
        written = run(config(tmp_path, scenes=2, rounds=1, **served_by(proxy.url, check_images=False)))
    assert written.rejected == written.questions == 4
    assert {row["kind"] for row in rows(tmp_path / "out/rejected.jsonl")} == {"not the form asked for"}
    assert all(record.turns[0].text for record in jsonl(str(written.file)))  # the seeds


def test_a_server_that_is_down_ends_the_run_and_costs_no_item(make_scene, tmp_path):
    dead = served_by("http://127.0.0.1:9/v1", check_images=False, retry_seconds=0)
    with pytest.raises(DataError, match=r"4 of 4 requests to tiny got no reply.*127\.0\.0\.1:9.*run again"):
        run(config(tmp_path, scenes=2, **dead))
    assert not (tmp_path / "out/rounds/1.jsonl").exists()

    def down(number, body) -> str:  # the judge alone
        return "500" if "Grade the difficulty" in str(body) else ""

    with FaultProxy(None, fault=down, content=said) as proxy:
        fields = served_by(proxy.url, check_images=False, retry_seconds=0)
        with pytest.raises(DataError, match=r"got no reply.*HTTP 500.*run again"):
            run(config(tmp_path, scenes=2, **fields))
        before = kept_calls(tmp_path / "out" / "answers")
        proxy.fault = lambda number, body: ""
        sent = len(proxy.seen)
        more = served_by(proxy.url, check_images=False, retry_seconds=0, budget={"tokens": 10**9})
        run(config(tmp_path, scenes=2, **fields | {"evolver": more["evolver"]}))
        assert not before & {seen.call for seen in proxy.seen[sent:]}
        run(config(tmp_path, "straight", scenes=2, **fields))
    assert results(tmp_path / "out") == results(tmp_path / "straight")


def test_steps_that_no_judge_was_shown_are_not_told_later(make_scene, tmp_path):
    path = config(tmp_path, scenes=1, **served_by("http://127.0.0.1:9/v1", check_images=False, retry_seconds=0))
    with pytest.raises(DataError, match="got no reply"):
        run(path)
    with pytest.raises(ConfigError, match=r"other settings of chain\. Only out, rounds, versions and how"):
        run(path, "chain=true")
    with pytest.raises(DataError, match="got no reply"):
        run(path, "versions=all")


def test_half_a_chunk_is_done_again(make_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_file, "CHUNK", 3)
    monkeypatch.setattr("mmkd.synthesis.evolving.run.CHUNK", 3)
    path = config(tmp_path)
    run(path)
    whole = results(tmp_path / "out")
    file = tmp_path / "out/rounds/1.jsonl"
    (tmp_path / "out/rounds/2.jsonl").unlink()
    for left in (len(file.read_bytes()) - 5, 40, 0):
        file.write_bytes(file.read_bytes()[:left])
        run(path)
        assert results(tmp_path / "out") == whole


def test_the_command_line_evolves(make_scene, tmp_path):
    asked = [str(config(tmp_path)), "rounds=1"]
    printed = CliRunner().invoke(app, ["evolve", *asked], catch_exceptions=False).output
    assert "4 records with 8 questions" in printed


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_records_and_pays_no_reply_twice(
    make_scene, tmp_path, record_property
):
    draw = random.Random(2)
    with FaultProxy(None, content=said, delay=0.02) as proxy:
        fields = served_by(proxy.url, check_images=False)
        path, straight = (config(tmp_path, name, scenes=10, **fields) for name in ("killed", "straight"))
        assert finished(start(straight))
        needed, kills, straight_calls = len(kept_calls(tmp_path / "straight" / "answers")), 0, len(proxy.seen)
        while True:
            before = len(proxy.seen)
            kept_before = kept_calls(tmp_path / "killed" / "answers")
            process = start(path)
            share = 2 * (needed - len(kept_before)) // (KILLS - kills + 1)  # twice an even part of what is left
            more = draw.randint(1, max(share - 1, 1)) if kills < KILLS else 10**9
            while process.is_alive() and len(proxy.seen) < before + more:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.03)
            process.kill()
            process.join()
            assert not kept_before & {seen.call for seen in proxy.seen[before:]}
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        assert kills >= 0.75 * KILLS
        # What a kill lost on its way is sent again under its own Idempotency-Key, and nothing else.
        calls = [seen.call for seen in proxy.seen]
        assert set(calls[straight_calls:]) == set(calls[:straight_calls])
        record_property("kills", kills)
        record_property("replies", needed)
        record_property("asked_again", len(proxy.seen) - 2 * straight_calls)
        before = len(proxy.seen)
        assert finished(start(path))  # once more: all is there, nothing is asked
        assert len(proxy.seen) == before
    killed, clean = results(tmp_path / "killed"), results(tmp_path / "straight")
    assert killed == clean
    record_property("equal_files", len(killed))
    assert sum(row["kept"] for row in rows(tmp_path / "killed/rounds/2.jsonl")) > 1


def start(path: Path) -> BaseProcess:
    """The evolution in a process of its own, forked from one that has imported everything."""
    process = get_context("forkserver").Process(target=evolve, args=(load_as(path, [], EvolveConfig),))
    process.start()
    return process


def finished(process: BaseProcess) -> bool:
    process.join(600)
    return process.exitcode == 0
