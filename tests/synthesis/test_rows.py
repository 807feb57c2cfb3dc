"""Rows that jobs read: what cannot be sent or written down is set aside, and costs its row alone."""

from __future__ import annotations

import json

from mmkd.data.record_files import jsonl
from mmkd.data.rejected import RejectedLog, summary
from mmkd.synthesis.rows import usable


def test_half_a_character_costs_its_row_and_not_the_job(tmp_path):
    turns = [{"role": "user", "text": "what is it?"}, {"role": "assistant", "text": "a cat"}]
    rows = [{"id": str(number), "turns": turns} for number in range(5)]
    rows[1] = {"id": "1", "turns": [{"role": "user", "text": "what is it? \ud83d"}, turns[1]]}
    rows[2]["id"] = "\ud83d"
    rows[4] = {"id": "4", "turns": [{"role": "user", "text": None}, turns[1]]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = RejectedLog(tmp_path / "rejected.jsonl")
    assert usable(jsonl(str(tmp_path / "rows.jsonl")), log, "data") == [0, 3]
    assert summary(log.path) == {"broken text": 3}
    assert "U+D83D, one half of a character" in log.path.read_text()
