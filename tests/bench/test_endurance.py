"""The bench that tells what other tests counted."""

from __future__ import annotations

import pytest

from bench.endurance import TESTS, counted
from mmkd.errors import DataError

INNER = """
import os

def test_one(record_property):
    record_property("kills", int(os.environ["MMKD_KILLS"]))
    assert int(os.environ["MMKD_KILLS"]) == 3
"""


def test_figures_are_of_tests_that_pass(tmp_path):
    test = tmp_path / "test_inner.py"
    test.write_text(INNER)
    assert counted(str(test), 3) == {"kills": 3.0}
    with pytest.raises(DataError, match="test_inner"):
        counted(str(test), 4)


@pytest.mark.parametrize("test", TESTS.values())
def test_each_of_them_tells_its_counts(root, test):
    file, _, name = test.partition("::")
    _, _, body = (root / file).read_text().partition(f"def {name}(")
    assert "record_property(" in body.partition("\ndef ")[0]
