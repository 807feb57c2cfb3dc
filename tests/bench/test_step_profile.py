"""What an operator's time is put down to."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bench.step_profile import kind_of

IDS = 49_153


@pytest.mark.parametrize(
    ("operator", "shapes", "kind"),
    [
        ("aten::mm", [[16, 576], [576, IDS]], "head"),
        ("aten::mm", [[IDS, 16], [16, 576]], "head"),  # its weight's gradient
        ("aten::mm", [[16, 576], [576, 1536]], "rest"),
        ("aten::_log_softmax", [[8, 240, IDS], [], []], "logits"),
        ("aten::exp", [[4, IDS]], "logits"),
        ("aten::add_", [[IDS, 576], [IDS, 576], []], "rest"),  # the optimiser, on the embedding
        ("aten::embedding", [[IDS, 576], [8, 240]], "rest"),
        ("aten::fill_", [[IDS], []], "rest"),
        ("Optimizer.step#AdamW.step", [], "rest"),
    ],
)
def test_kinds(operator, shapes, kind):
    assert kind_of(operator, shapes, IDS) == kind


def test_the_operators_of_a_head_are_found_by_the_profiler():
    ids = 301
    hidden, weight = torch.randn(7, 8, requires_grad=True), torch.randn(ids, 8, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        (hidden @ hidden.mT).sum().backward()
        torch.nn.functional.linear(hidden, weight).log_softmax(-1).exp().sum().backward()
    found: dict[str, set[str]] = {"head": set(), "logits": set(), "rest": set()}
    for event in profiler.key_averages(group_by_input_shape=True):
        found[kind_of(event.key, event.input_shapes or [], ids)].add(event.key)
    assert "aten::mm" in found["head"] & found["rest"]
    assert {"aten::_log_softmax", "aten::exp", "aten::_log_softmax_backward_data"} <= found["logits"]
