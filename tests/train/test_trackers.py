"""Metrics reach what `training.trackers` names."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.mark.distributed
def test_tensorboard_gets_what_metrics_jsonl_has(config):
    settings = config(stage={"steps": 3, "micro_batch_size": 8}, training={"trackers": ["tensorboard"]})
    ranks.run(settings, world=1)
    (events,) = Path(settings["run"]["dir"]).rglob("events.out.tfevents*")
    found = EventAccumulator(str(events)).Reload()
    for name in ("loss", "ce", "kl", "tokens_per_second"):
        expected = [line[name] for line in ranks.lines(settings)]
        assert [event.value for event in found.Scalars(f"train/{name}")] == pytest.approx(expected, rel=1e-5)
