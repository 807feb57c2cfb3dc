"""Sandbox workers killed while the job runs: no program is to blame, so nothing of it is in what the job leaves."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import count

import psutil

from mmkd.synthesis.programs.making.run import make_programs
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Reason
from mmkd.synthesis.programs.runner import TRIES


def test_workers_killed_again_and_again_leave_the_records_of_an_undisturbed_run(config, tmp_path, monkeypatch):
    undisturbed = make_programs(config(tmp_path / "undisturbed"))
    execute, started, killed = MontyExecutor.execute, count(1), []
    running, deaths = Counter(), Counter()  # by program
    mine = {child.pid for child in psutil.Process().children()}  # whatever else this test process has started

    def disturbed(self, code, inputs, call, limits):
        calls = count() if next(started) % 5 == 0 else count(1)

        def killing(*asked):
            # In the middle of this program; of whatever runs beside it; or while nobody uses it. None so often that
            # it is given up.
            if next(calls) == 0 and all(deaths[one] < TRIES[Reason.WORKER_DIED] - 2 for one in +running):
                deaths.update((+running).keys())
                for worker in psutil.Process().children():
                    with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                        if worker.pid not in mine and worker.name() in ("monty", "worker"):
                            worker.kill()
                            killed.append(worker.pid)
            return call(*asked)

        running[code] += 1
        try:
            return execute(self, code, inputs, killing, limits)
        finally:
            running[code] -= 1

    monkeypatch.setattr(MontyExecutor, "execute", disturbed)
    made = make_programs(config(tmp_path / "disturbed"))
    assert len(killed) > 20
    assert made.yields == undisturbed.yields
    for name in ("records.jsonl", "programs.jsonl", "writer.jsonl", "yield.json"):
        assert (tmp_path / "disturbed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
