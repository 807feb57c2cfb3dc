"""A small run folder with everything in it, and a parser of pages."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmkd.config.load import dump_config, load_config
from tests.evaluate.conftest import tiny_model

PAYLOAD = "\"'><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}&amp;"
PAINTS = ["red", "green", "blue", "orange"]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`student` with K = 4 compression tokens and `teacher` without any."""
    root = tmp_path_factory.mktemp("models")
    for name, tokens in (("student", 4), ("teacher", None)):
        model, processor = tiny_model(tokens)
        model.config.parts = {"vision": {"source": "timm:test_efficientnet", "license": "Apache-2.0"}}
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


def write_run(root: Path, models: Path, text: str = "what is this?") -> Path:
    """root/student and root/teacher, whole. `text` stands wherever data brings text."""
    student, teacher = root / "student", root / "teacher"
    for run in (student, teacher):
        run.mkdir(parents=True)
        shutil.copytree(models / run.name, run / "model")
    config = load_config("demo/distill", [f"run.dir={student}", "student.keep_layers=3"])
    section = config.stages[0].model_copy(update={"name": text})
    teacher_section = config.teacher.model_copy(update={"model": str(teacher / "model")})
    config = config.model_copy(update={"stages": [section], "teacher": teacher_section})
    (student / "config.yaml").write_text(dump_config(config))
    (student / "environment.json").write_text(json.dumps({"versions": {"torch": text}, "machine": text, text: 1}))
    lines = [
        {
            "stage": text,
            "step": step,
            "loss": 20 / step,
            "ce": 1.0,
            "k1/ce": 2.0 / step,
            "full/ce": 1.0 / step,
            "agree": 0.5,
        }
        for step in range(1, 31)
    ]
    (student / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for run, readings in ((student, {"1": 0.5, "4": 0.75, "full": 1.0, "blind": 0.25}), (teacher, {"full": 1.0})):
        for reading, accuracy in readings.items():
            write_scores(run / "eval", reading, accuracy, text)
    return student


def write_scores(folder: Path, reading: str, accuracy: float, text: str, questions: int = 8) -> None:
    """One reading as mmkd.evaluate.suite writes it; the first share of the questions is answered right."""
    pictures = folder.parent / "pictures"
    pictures.mkdir(exist_ok=True, parents=True)
    folder.mkdir(exist_ok=True)
    scores = {"acc": accuracy, "image_tokens": 1.0, "seconds_per_question": 0.01}
    (folder / f"toy-{reading}.json").write_text(json.dumps({"model": text, "scores": scores}))
    rows = []
    for i in range(questions):
        paint = PAINTS[i % 4]
        Image.new("RGB", (40, 40), paint).save(pictures / f"{paint}.png")
        doc = {"question": f"{i}: {text}", "answer": text, "file": str(pictures / f"{paint}.png")}
        answer = text if i < accuracy * questions else f"not {text}"
        row = {"task": "toy", "doc_id": i, "doc": doc, "target": text, "filtered_resps": [answer]}
        rows.append(row | {"acc": float(answer == text)})
    (folder / f"toy-{reading}.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Page(HTMLParser):
    """What a page holds: tags with attributes, and all text, unescaped."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def headings(self) -> list[str]:
        return [part.split("</h2>")[0] for part in self.html.split("<h2>")[1:]]


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
