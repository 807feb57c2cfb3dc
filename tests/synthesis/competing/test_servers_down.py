"""A competition whose server is away for a while, moves, or has spent its budget: nothing is lost, and it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmkd.config.compete_schema import CompeteConfig
from mmkd.errors import DataError
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.items import Item, read_items, write_items
from tests.synthesis.fault_proxy import FaultProxy


@pytest.fixture
def items(picture, tmp_path) -> list[Item]:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(0))
    return [Item(f"i{number}", f"what is thing number {number}?", (str(file),)) for number in range(60)]


def config(out: Path, teacher: dict[str, Any], **changes: Any) -> CompeteConfig:
    base = {
        "out": str(out),
        "start": "s",
        "training": {"config": "t"},
        "teacher": teacher,
        "pool": [{"source": "scenes"}],
        "held_out": [{"source": "scenes"}],
        "augment": {"name": "grounded"},
        "check_teacher": False,
        "labels": False,
    }
    return CompeteConfig.model_validate(base | changes)


def served(url: str, **fields: Any) -> dict[str, Any]:
    settings = {"url": url, "model": "m", "retry_seconds": 0, "check_images": False, "concurrency": 1}
    return {"endpoint": settings | fields}


def test_a_step_is_closed_only_when_the_server_owes_nothing(items, tmp_path):
    with FaultProxy(None, fault=lambda number, body: "500" if 7 <= number < 12 else "") as proxy:
        competition = Competition(config(tmp_path, served(proxy.url)), {}, tmp_path, lambda *_: None)
        write_items(tmp_path / "given" / "pool.jsonl", items)
        with pytest.raises(DataError, match=r"5 of 60 requests to m got no reply.*run again"):
            competition._step("teacher", competition._ask_teacher)
        assert competition._step("teacher", competition._ask_teacher) == {"pool": 60, "given": 60}
        assert len(proxy.seen) == 65
    assert [item.id for item in read_items(tmp_path / "pool" / "0.jsonl")] == [item.id for item in items]
