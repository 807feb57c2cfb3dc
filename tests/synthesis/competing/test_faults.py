"""A step of a competition behind a network that loses, cuts, repeats and garbles replies."""

from __future__ import annotations

import json
import random
from itertools import cycle

from mmkd.config.compete_schema import CompeteConfig, RefineSection
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import Kind, assess
from mmkd.synthesis.competing.refining import refine
from mmkd.synthesis.requests import Sampling
from tests.synthesis.fault_proxy import FAULTS, FaultProxy


def test_every_item_ends_with_a_true_score_or_a_reason_and_is_paid_once(failed, oracle, tmp_path, record_property):
    items, _ = failed
    draw = random.Random(7)
    faults = cycle(draw.sample(FAULTS, len(FAULTS)))

    def fault(number, body) -> str:
        return next(faults) if draw.random() < 0.2 else ""

    with FaultProxy(oracle, fault=fault) as proxy:
        endpoint = {"url": proxy.url, "model": "oracle", "license": "MIT", "timeout": 5.0, "retry_seconds": 60.0}
        model = {"endpoint": endpoint}
        config = CompeteConfig.model_validate(
            {"out": str(tmp_path), "start": "s", "training": {"config": "t"}, "teacher": model,
             "judge": {"model": model}, "reasks": 3,
             "labels": False, "pool": [{"source": "scenes"}], "held_out": [{"source": "scenes"}],
             "augment": {"name": "grounded"}}
        )  # fmt: skip

        def step():
            log = RejectedLog(tmp_path / f"{len(proxy.seen)}.jsonl")
            given, folder = list(items.values()), tmp_path / "asked"
            told = answered(config.teacher, folder, given, Sampling(max_tokens=8), log, config.reasks, "teacher")
            outcomes, _ = assess(config, tmp_path, told, dict.fromkeys(items, "wrong"), log)
            section = RefineSection(tries=2)
            mended = refine(config, section, tmp_path, 1, outcomes, items, config.teacher, log)
            aside = [json.loads(line) for line in log.path.read_text().splitlines()] if log.path.exists() else []
            return list(outcomes), mended, aside

        outcomes, mended, aside = step()
        assert {"hang", "drip"} < {seen.fault for seen in proxy.seen}
        asked = len(proxy.seen)
        record_property("requests", asked)
        record_property("faults", sum(bool(seen.fault) for seen in proxy.seen))
        again, twice, _ = step()
        assert len(proxy.seen) <= asked + 2  # whether pictures are read is seen from kept answers, too
    silent = {row["id"] for row in aside if row["source"] == "teacher"}
    scored = sum(one.kind is not Kind.UNSCORED for one in outcomes)
    record_property("items", len(items))
    record_property("done", scored)
    record_property("rejected", len(silent) + len(outcomes) - scored)
    assert {one.id for one in outcomes} | silent == items.keys()
    for one in outcomes:
        if one.kind is Kind.UNSCORED:
            assert one.error
        else:
            assert one.scores == (10.0 if one.teacher == items[one.id].reference else 2.0, 2.0)
    assert mended.asked == sum(one.kind is Kind.HARD for one in outcomes) > 10
    assert all(one.answer == items[name].reference for name, one in mended.found.items())
    assert len(mended.found) > 2
    assert (outcomes, mended) == (again, twice)
