"""Loss that is no number, full disk, bad rows: a clear outcome each, and the last checkpoint kept."""

from __future__ import annotations

import json
import resource
import signal
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from mmkd.checkpoints import latest_complete
from mmkd.errors import DataError, TrainingError
from mmkd.objectives import AnswerBatch, Losses, Objective, Outputs, names, register


def go_into_nan(config: dict[str, Any]) -> str:
    """A rank of a run in which the seventh loss of rank 1 alone is no number."""
    if "broken_at_seven" not in names():

        @register("broken_at_seven")
        class BrokenAtSeven(Objective):
            calls = 0

            def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
                self.calls += 1
                factor = torch.nan if self.calls == 7 and torch.distributed.get_rank() == 1 else 0.0
                return Losses(student.answer_hidden.sum() * factor)

    return ranks.go(config)


@pytest.mark.distributed
def test_a_loss_that_is_no_number_stops_every_rank_and_keeps_the_checkpoint(config):
    settings = config(stage={"micro_batch_size": 4}, training={"save_every": 2})
    settings["objectives"] = [{"name": "cross_entropy"}, {"name": "broken_at_seven"}]
    errors = ranks.on_ranks(2, ranks.call, __file__, "go_into_nan", settings)
    for error in errors:
        assert isinstance(error, TrainingError), error
        assert "the loss is nan at step 7 on rank 1, samples r" in str(error)
        assert "checkpoint-6: --resume goes on from step 6" in str(error)
    folder = Path(settings["run"]["dir"]) / "checkpoints" / "distill"
    assert latest_complete(folder) == folder / "checkpoint-6"
    assert not (folder.parent.parent / "model").exists()


def go_on_a_full_disk(config: dict[str, Any], size: int) -> str:
    """A rank of a resumed run that cannot write files of more than `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return ranks.go(config, resume=True)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("after", "what"), [(5, "checkpoint-10 could not be written"), (20, "model.partial could not be written")]
)
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(finished, stopped, after, what):
    settings = stopped(2, after=after)
    errors = ranks.on_ranks(2, ranks.call, __file__, "go_on_a_full_disk", settings, 60_000)
    assert all(isinstance(error, TrainingError) for error in errors), errors
    assert any(what in str(error) for error in errors)
    assert all(f"checkpoint-{after}: --resume goes on from step {after}" in str(error) for error in errors)
    assert ranks.run(settings, resume=True) == pytest.approx(ranks.losses(finished(2)), rel=1e-6)


def bomb(path: Path) -> None:
    """A PNG that says it is 60,000 pixels wide and high, in 80 bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100))]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def spoil(path: Path, rows: dict[int, str]) -> Path:
    """A copy of a record file in which some rows cannot be used: missing, broken, bomb, roles, or no JSON at all."""
    lines = path.read_text().splitlines()
    bomb(path.parent / "bomb.png")
    (path.parent / "broken.png").write_bytes((path.parent / "1-0.png").read_bytes()[:80])
    for number, fault in rows.items():
        record = json.loads(lines[number])
        if fault == "roles":
            record["turns"].reverse()
        else:
            record["images"] = [f"{fault}.png"]
        lines[number] = "{ no json" if fault == "json" else json.dumps(record)
    spoilt = path.with_name("spoilt.jsonl")
    spoilt.write_text("\n".join(lines) + "\n")
    return spoilt


@pytest.mark.distributed
def test_a_few_bad_rows_are_set_aside_with_their_reasons_and_the_run_goes_on(config, many_records):
    faults = {3: "missing", 17: "broken", 31: "bomb", 44: "roles", 58: "json"}
    data = {"mixture": [{"source": "jsonl", "path": str(spoil(many_records, faults))}], "max_length": 256}
    settings = config(data=data, stage={"steps": 9, "micro_batch_size": 4})
    assert len(ranks.run(settings)) == 9
    rejected = [json.loads(line) for line in (Path(settings["run"]["dir"]) / "rejected.jsonl").open()]
    assert {line["index"]: line["kind"] for line in rejected} == {
        3: "image missing",
        17: "image unreadable",
        31: "image too large",
        44: "wrong roles",
        58: "unreadable row",
    }


@pytest.mark.distributed
def test_mostly_bad_rows_stop_the_run_with_the_reason(config, many_records):
    faults = dict.fromkeys(range(0, 72, 2), "missing")
    data = {"mixture": [{"source": "jsonl", "path": str(spoil(many_records, faults))}], "max_length": 256}
    settings = config(data=data, stage={"steps": 40, "micro_batch_size": 4}, training={"save_every": 4})
    errors = ranks.on_ranks(2, ranks.go, settings)
    assert any(isinstance(error, DataError) for error in errors), errors
    for error in errors:
        assert isinstance(error, (DataError, TrainingError)), error
        assert "--resume goes on from step 4" in str(error)
    assert any("missing.png does not exist" in str(error) for error in errors)
