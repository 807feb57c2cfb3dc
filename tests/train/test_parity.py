"""ZeRO on two ranks trains as one plain process does."""

from __future__ import annotations

import pytest
import ranks


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_with_accumulation_equal_one_plain_process(config, zero):
    settings = config(zero=zero)
    plain = ranks.one_plain_process(settings)
    found = ranks.run(settings)
    assert len(found) == 20
    assert plain[-1] < plain[0]
    assert found == pytest.approx(plain, rel=1e-4)
