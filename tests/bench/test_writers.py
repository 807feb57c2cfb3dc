"""The bench of a writer that teaches itself, with a tiny one that knows a single program."""

from __future__ import annotations

from argparse import Namespace

import pytest

from bench.rows import read
from bench.writers import compared
from mmkd.data.scenes import scene
from mmkd.errors import AssetError
from tests.tiny_writer import tiny_writer


@pytest.mark.slow
def test_each_round_has_its_yield_and_its_false_accepts_for_one_sample_and_for_all(tmp_path):
    try:
        scene("train", 0, 0)
    except AssetError as error:
        pytest.skip(f"EasyVQA cannot be brought here: {error}")
    overrides = [
        f"writer.language.source={tiny_writer(tmp_path)}", "samples=2", "sampling.temperature=0", "tools.names=[count]",
        "examples=0", "tune.rounds=1", "tune.steps=2", "tune.batch_size=1", "tune.learning_rate=1.0e-6",
    ]  # fmt: skip
    asked = Namespace(
        out=tmp_path / "out", seeds=[0], questions=9, pictures=6, again=1, set=overrides, results=tmp_path / "rows"
    )
    compared(asked)
    found = {row.metric: row.value for row in read("writers", tmp_path / "rows")}
    cases = [*(f"k={k} round={number}" for k in (1, 2) for number in (0, 1)), "k=2, again round=0"]
    assert {name.partition("@")[2] for name in found} == set(cases)
    for case in cases:  # the one program answers "how many circles are there?" and nothing else
        assert found[f"verified_count@{case}"] == pytest.approx(100 / 9)
        assert found[f"verified@{case}"] <= found[f"right@{case}"] <= found[f"ran@{case}"]
        assert found[f"tried@{case}"] >= 1
    rows = (tmp_path / "rows" / "writers_seeds.jsonl").read_text()
    compared(asked)  # nothing is done twice
    assert (tmp_path / "rows" / "writers_seeds.jsonl").read_text() == rows
