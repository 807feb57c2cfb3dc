"""The bench that tells how far the tests' objectives were from their references."""

from __future__ import annotations

import pytest

from bench.exactness import case_of, compared
from tests.objectives import test_divergences as inner


@pytest.mark.parametrize(
    ("test", "case"),
    [
        ("test_a_step_teaches_the_same_however[forward_kl-True]", "forward_kl, any cut"),
        ("test_a_step_teaches_the_same_however[hidden_states cosine-False]", "hidden_states cosine, any cut"),
        ("test_in_bf16_loss_and_gradients_are_those_of_fp32[uld]", "uld, bf16"),
        ("test_two_ranks_teach_what_one_process_teaches[2]", "every objective, two ranks"),
    ],
)
def test_what_holds_for_every_objective_has_a_line_for_each(test, case):
    assert case_of("tests.objectives.test_every_objective", test) == case
    assert case_of("tests.objectives.test_token_losses", test) == "token losses"


def test_errors_are_the_largest_of_what_was_compared():
    [(case, found)] = compared(inner.__file__).items()
    assert case == "divergences"
    assert 0 < found["error_fp32"] < 1e-5
    assert found["error_fp32"] > found["error_fp64"]
    assert found["comparisons_fp32"] > 10
