"""Token losses under DeepSpeed ZeRO, with ranks that have different numbers of answers."""

from pathlib import Path

import pytest
import torch


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_one_of_them_without_answers_learn_what_one_process_learns(stage, monkeypatch, tmp_path):
    pytest.importorskip("deepspeed")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import zero_worker

    alone = zero_worker.train_alone(steps=3)
    for rank in zero_worker.train_on_ranks(stage, 3, str(tmp_path)):
        for found, expected in zip(rank, alone, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
