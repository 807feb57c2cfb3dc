"""A scripted writer of programs that are right, right in another way, lucky, and no Python; and rows to ask about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.records import Record
from mmkd.data.scenes import records
from mmkd.data.write_records import write_jsonl
from tests.synthesis.programs.conftest import program_for
from tests.synthesis.programs.making.scripted import ScriptedWriter


def reply(question: str, seed: int) -> str:
    right = program_for(question)
    other = right.replace("return ", "return [").rstrip() + "][0]\n"
    lucky = f"def answer(image):\n    return {'yes' if question.startswith('is') else '1'!r}\n"
    return [right, f"Here it is:\n```python\n{right.replace('image', 'picture')}```\nBye", lucky, "return (", other][
        seed
    ]


@pytest.fixture
def writer() -> Iterator[ScriptedWriter]:
    with ScriptedWriter(reply) as server:
        yield server


@pytest.fixture(scope="session")
def rows(make_scene) -> list[Record]:
    return records("train", 4, 0, questions=5, single=True)


@pytest.fixture
def config(writer, rows, tmp_path) -> Callable[..., ProgramsConfig]:
    """`config(out, ..)`: five samples of the scripted writer for the rows."""
    write_jsonl(tmp_path / "rows.jsonl", rows)

    def make(out: Path, **fields: Any) -> ProgramsConfig:
        return ProgramsConfig.model_validate(
            {
                "writer": {"endpoint": {"url": writer.url, "model": "scripted", "license": "MIT", "concurrency": 4}},
                "data": [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}],
                "out": str(out),
            }
            | fields
        )

    return make
