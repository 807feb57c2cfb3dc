"""What a test of an objective compared, told to whoever reads its report (bench.exactness)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.objectives.sides import NOTED


@pytest.fixture(autouse=True)
def told(record_property: Callable[[str, object], None]) -> Iterator[None]:
    NOTED.clear()
    yield
    for dtype in dict.fromkeys(dtype for dtype, _ in NOTED):
        errors = [error for of, error in NOTED if of is dtype]
        record_property(f"comparisons {dtype}", len(errors))
        record_property(f"error {dtype}", max(errors))
