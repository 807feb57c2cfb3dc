"""Suites: found, scored, written down; the shipped ones hold what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lmms_eval
import pytest
import yaml
from lmms_eval.tasks import TaskManager
from PIL import Image

from mmkd import assets
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.data.scenes import scenes
from mmkd.errors import AssetError, ConfigError
from mmkd.evaluate.matching import exact
from mmkd.evaluate.suite import evaluate, find_suite, suites_folder

TASK = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
doc_to_visual: !function utils.image
doc_to_text: question
doc_to_target: answer
process_results: !function utils.score
output_type: generate_until
generation_kwargs: {max_new_tokens: 4, do_sample: false}
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
from pathlib import Path
from PIL import Image
from mmkd.evaluate.matching import exact

def image(doc):
    return [Image.open(Path(__file__).parent / doc["file"]).convert("RGB")]

def score(doc, results):
    return {"acc": float(results[0] == doc["answer"])}
"""
PAINTS = ["red", "green", "blue", "white", "orange", "black"]


def toy_suite(folder: Path, answers: list[str]) -> Path:
    folder.mkdir()
    (folder / "toy.yaml").write_text(TASK)
    (folder / "utils.py").write_text(UTILS)
    rows = []
    for i, answer in enumerate(answers):
        paint = PAINTS[i % len(PAINTS)]
        Image.new("RGB", (16, 16), paint).save(folder / f"{paint}.png")
        rows.append({"file": f"{paint}.png", "question": f"what is number {i // len(PAINTS)}?", "answer": answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def samples(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """The `datasets` cache of these tests, away from the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    yield
    patch.undo()


def test_a_model_that_answers_what_is_asked_scores_one_and_another_reading_of_it_less(folder, tmp_path):
    first = toy_suite(tmp_path / "first", ["?"] * 18)
    scores = evaluate(folder, str(first), [2], out=tmp_path / "out")
    assert scores["2"]["acc"] == 0.0
    own = [row["filtered_resps"][0] for row in samples(tmp_path / "out", "first-2")]
    second = toy_suite(tmp_path / "second", own)
    scores = evaluate(folder, str(second), [2, "full"], blind=True, batch_size=5, out=tmp_path / "out")
    assert list(scores) == ["2", "full", "blind"]
    assert scores["2"]["acc"] == 1.0
    assert scores["full"]["acc"] < 1.0
    assert scores["blind"]["acc"] < 1.0
    assert [scores[name]["image_tokens"] for name in scores] == [2, 4, 0]
    assert scores["full"]["prefill_tokens"] - scores["2"]["prefill_tokens"] == 2

    written = json.loads((tmp_path / "out" / "second-full.json").read_text())
    assert written["scores"] == scores["full"]
    assert (written["tokens"], written["blind"], written["suite"]) == ("full", False, "second")
    right = [row["acc"] for row in samples(tmp_path / "out", "second-full")]
    assert sum(right) / len(right) == scores["full"]["acc"]
    assert json.loads((tmp_path / "out" / "second-blind.json").read_text())["blind"] is True


def test_the_limit_scores_the_first_questions_only(folder, tmp_path):
    suite = toy_suite(tmp_path / "limited", ["?"] * 18)
    evaluate(folder, str(suite), [1], limit=7, out=tmp_path / "out")
    assert [row["doc_id"] for row in samples(tmp_path / "out", "limited-1")] == list(range(7))


def test_a_failing_task_raises_instead_of_scoring_nothing(folder, tmp_path):
    suite = toy_suite(tmp_path / "broken", ["?"] * 6)
    (suite / "red.png").unlink()
    with pytest.raises(FileNotFoundError):
        evaluate(folder, str(suite), [1])


def test_a_wrong_token_count_is_refused_before_anything_is_scored(folder, tmp_path):
    suite = toy_suite(tmp_path / "refused", ["?"] * 6)
    with pytest.raises(ConfigError, match="1 to 4 or full"):
        evaluate(folder, str(suite), [1, 9], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_is_answered_with_the_suites_there_are(tmp_path):
    with pytest.raises(ConfigError, match="easyvqa, easyvqa_scenes, official"):
        find_suite("easyvqs")
    with pytest.raises(ConfigError, match="no lmms-eval task in it"):
        find_suite(str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("Red.", "red", 1.0), (" yes\n", "yes", 1.0), ("red circle", "red", 0.0), ("", "no", 0.0), ("10", "1", 0.0)],
)
def test_an_answer_is_right_up_to_case_punctuation_and_spaces(answer, truth, right):
    assert exact(answer, truth) == right


def test_every_official_task_exists_in_the_installed_lmms_eval():
    named = yaml.safe_load((suites_folder() / "official" / "official.yaml").read_text())["task"]
    tasks = Path(lmms_eval.__file__).parent / "tasks"
    wanted = ("gqa", "pope", "mme", "mmbench", "scienceqa", "seedbench", "textvqa", "vqav2", "mmmu", "ai2d")
    index = TaskManager(include_path=[str(tasks / name) for name in wanted], include_defaults=False)
    assert set(named) <= set(index.all_tasks)
    for name in wanted:
        assert any(task.startswith(name) for task in named), f"no task of {name} in the suite"
    found = find_suite("official")
    assert (found.tasks, found.builtin) == (("official",), True)


@pytest.fixture(scope="module")
def easyvqa() -> Path:
    try:
        return assets.path("easyvqa")
    except AssetError as error:
        pytest.skip(f"easyvqa is not there and cannot be fetched: {error}")


def documents(suite: str) -> tuple:
    index = TaskManager(include_path=[str(suites_folder() / suite)], include_defaults=False)
    task = index.load_task_or_group([suite], task_type="chat")[suite]
    return task, task.test_docs()


def test_easyvqa_is_the_whole_test_split_of_the_package(easyvqa):
    task, docs = documents("easyvqa")
    told = json.loads((easyvqa / "test" / "questions.json").read_text())
    assert [[d["question"], d["answer"], int(Path(d["file"]).stem)] for d in docs] == told
    assert {Path(d["file"]).parts[-3] for d in docs} == {"test"}
    (message,) = task.doc_to_messages(docs[5])
    image, text = message["content"]
    assert image["url"].size == (64, 64)
    assert text["text"] == told[5][0]
    kinds = {"shape": SHAPES, "color": COLORS, "yes_no": ("yes", "no")}
    assert all(d["answer"] in kinds[d["type"]] for d in docs)


def test_easyvqa_scenes_are_the_fixed_test_scenes_with_a_score_for_each_type(easyvqa):
    task, docs = documents("easyvqa_scenes")
    assert len(docs) == 2000
    made = list(scenes("test", 200, seed=2024, grid=2))
    assert [d["question"] for d in docs] == [q.text for one in made for q in one.questions]
    (message,) = task.doc_to_messages(docs[1234])
    assert message["content"][0]["url"].tobytes() == made[123].image().tobytes()
    named = {metric["metric"] for metric in task.config.metric_list}
    scored = [task.process_results(d, [d["answer"]]) for d in docs]
    assert set.union(*map(set, scored)) == named
    assert all(value == 1.0 for row in scored for value in row.values())
    assert all(value == 0.0 for value in task.process_results(docs[0], ["nonsense"]).values())


@pytest.mark.e2e
def test_lmms_evals_own_command_line_scores_an_mmkd_folder(easyvqa, folder, tmp_path):
    arguments = {
        "--model": "mmkd",
        "--model_args": f"pretrained={folder},voco_tokens=1",
        "--tasks": "easyvqa",
        "--limit": "20",
        "--batch_size": "8",
        "--device": "cpu",
        "--verbosity": "DEBUG",  # otherwise it ends with 0 even where it failed
        "--output_path": str(tmp_path),
    }
    command = [sys.executable, "-m", "lmms_eval", *(word for pair in arguments.items() for word in pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.rglob("*_results.json")
    results = json.loads(written.read_text())
    assert "acc,none" in results["results"]["easyvqa"]
    assert results["throughput"]["avg_image_tokens"] == 1
