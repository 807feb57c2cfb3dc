"""What is kept of a teacher's distribution, and that it comes back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mmkd.config.schema import TeacherSection
from mmkd.data.teacher_rows import hidden_of, row_key, stacked
from mmkd.errors import ConfigError
from mmkd.objectives.sparse import forward_kl
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.targets import TargetSettings, given_settings, keep, keep_hidden, uniforms_of

N, D, V = 9, 6, 50


@pytest.fixture
def states():
    torch.manual_seed(0)
    head = nn.Linear(D, V + 4, bias=False)
    nn.init.normal_(head.weight, std=1.0)
    return torch.randn(N, D), head, torch.randint(0, V, (N,))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 7, V])
def test_the_top_k_and_the_mass_of_the_rest_are_kept(states, k, dtype, temperature, monkeypatch):
    monkeypatch.setattr("mmkd.teachers.targets.CHUNK", 4)
    hidden, head, answers = states
    settings = TargetSettings(k=k, dtype=dtype, temperature=temperature)
    kept = stacked([keep(hidden, head, answers, V, settings, None)])
    logits = head(hidden).detach()[:, :V].double()
    p, plain = (logits / temperature).softmax(-1), logits.log_softmax(-1)
    near = {"float32": 1e-5, "float16": 4e-3}[dtype]
    values, ids = p.sort(-1, descending=True)
    assert torch.equal(kept["ids"], ids[:, :k])
    assert torch.equal(kept["best"], ids[:, 0])
    torch.testing.assert_close(kept["log_probs"].double().exp(), values[:, :k], atol=near, rtol=near)
    torch.testing.assert_close(kept["tail"].double().exp(), values[:, k:].sum(-1), atol=near, rtol=near)
    expected = plain.gather(1, answers[:, None])[:, 0]
    torch.testing.assert_close(kept["answers"].double(), expected, atol=near, rtol=near)


def test_an_answer_that_only_the_student_has_is_marked_and_padding_of_the_head_counts_for_nothing(states):
    hidden, head, answers = states
    with torch.no_grad():
        head.weight[V:] = 100.0
    kept = keep(hidden, head, torch.full_like(answers, V + 1), V, TargetSettings(k=3), None)
    assert np.isnan(kept["answers"]).all()
    assert kept["ids"].max() < V


def test_ids_take_two_bytes_where_the_vocabulary_allows_it(states):
    hidden, head, answers = states
    kept = keep(hidden, head, answers, V, TargetSettings(k=7), None)
    assert kept["ids"].dtype == np.uint16
    assert sum(array.nbytes for array in kept.values()) == N * (7 * 4 + 8)
    wide = nn.Linear(D, 70_000, bias=False)
    assert keep(hidden, wide, answers, 70_000, TargetSettings(k=7), None)["ids"].dtype == np.int32


@pytest.mark.parametrize("proposal", [1.0, 0.5, 2.0])
def test_draws_give_an_unbiased_estimate_of_any_mean_under_the_teacher(states, proposal):
    hidden, head, answers = states
    draws, repeats = 20, 400
    settings = TargetSettings(targets="sample", k=draws, proposal=proposal, dtype="float32")
    p = head(hidden).detach()[:, :V].softmax(-1)
    value = torch.linspace(-1, 2, V)
    found = []
    for number in range(repeats):
        uniforms = uniforms_of([number.to_bytes(32)], [N], draws)
        kept = stacked([keep(hidden, head, answers, V, settings, uniforms)])
        found.append((kept["weights"] * value[kept["ids"]]).sum(-1))
        if number == 0:
            assert kept["ids"].shape[1] <= draws
            alone = [row[weights > 0] for row, weights in zip(kept["ids"], kept["weights"], strict=True)]
            assert all(len(set(row.tolist())) == len(row) for row in alone)
            if proposal == 1.0:
                torch.testing.assert_close(kept["weights"].sum(-1), torch.ones(N))
    estimates = torch.stack(found)  # [repeats, N]
    error = estimates.std(0) / repeats**0.5
    assert ((estimates.mean(0) - p @ value).abs() < 4.5 * error + 1e-6).all()


def test_what_is_drawn_for_a_row_depends_on_its_key_alone():
    together = uniforms_of([b"a" * 32, b"b" * 32], [3, 2], 5)
    assert torch.equal(together[3:], uniforms_of([b"b" * 32], [2], 5))
    assert not torch.equal(together[:2], together[3:])
    assert together.min() >= 0
    assert together.max() < 1


def test_a_key_changes_with_image_text_and_what_of_it_is_the_answer():
    keys = [
        row_key([b"one"], [1, 2], [0, 1]),
        row_key([b"two"], [1, 2], [0, 1]),
        row_key([b"one", b"two"], [1, 2], [0, 1]),
        row_key([], [1, 2], [0, 1]),
        row_key([b"one"], [1, 3], [0, 1]),
        row_key([b"one"], [1, 2], [1, 1]),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == row_key([b"one"], [1, 2], [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0, expected a whole number >= 1"),
        ({"k": 70000}, "k=70000, expected a number <= 65535"),
        ({"temperature": 0}, "temperature=0.0, expected a number > 0"),
        ({"targets": "top"}, "teacher.targets is 'top'; allowed: 'top_k' or 'sample'"),
        ({"dtype": "int4"}, "teacher.dtype is 'int4'; allowed: 'float16' or 'float32'"),
        ({"top_k": 5}, "teacher.top_k is not a field of teacher.kind: cached"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message):
        given_settings(TeacherSection(kind="cached", store="x", **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_come_back_bit_by_bit(dtype):
    hidden = {3: torch.randn(5, D).to(dtype) * 1e4, 7: torch.randn(5, D).to(dtype)}
    token = {"counts": np.ones(5, dtype=np.uint16), "best": np.zeros(5, dtype=np.uint16)}
    kept = [
        {name: array[:2] for name, array in (token | keep_hidden(hidden)).items()},
        {name: array[2:] for name, array in (token | keep_hidden(hidden)).items()},
    ]
    assert sum(array.nbytes for name, array in kept[0].items() if "hidden" in name) == 2 * 2 * D * dtype.itemsize
    found = hidden_of(stacked(kept))
    assert list(found) == [3, 7]
    for layer, states in hidden.items():
        assert found[layer].dtype == dtype
        assert torch.equal(found[layer], states)


def test_layers_are_sorted_once_each_and_counted_from_the_first():
    assert TargetSettings(hidden_layers=(5, 2, 5)).hidden_layers == (2, 5)
    section = TeacherSection(kind="cached", store="x", hidden_layers=[5, 2])
    assert given_settings(section) == {"hidden_layers": (2, 5)}
    with pytest.raises(ConfigError, match=r"hidden_layers=-1, expected a number >= 0"):
        TargetSettings(hidden_layers=(-1, 3))


def test_rows_of_fewer_ids_and_of_none_are_filled_up_with_what_weighs_nothing():
    rows = {
        "ids": np.array([4, 2, 7], dtype=np.uint16),
        "log_probs": np.log(np.array([0.5, 0.3, 0.9], dtype=np.float32)),
        "counts": np.array([2, 0, 1], dtype=np.uint16),
        "tail": np.array([np.log(0.2), -1e9, np.log(0.1)], dtype=np.float32),
    }
    found = stacked([rows])
    assert found["ids"].tolist() == [[4, 2], [0, 0], [7, 7]]
    torch.testing.assert_close(found["log_probs"].exp(), torch.tensor([[0.5, 0.3], [0.0, 0.0], [0.9, 0.0]]))
    torch.testing.assert_close(found["tail"].exp(), torch.tensor([0.2, 0.0, 0.1]))


def test_rows_of_few_ids_give_the_kl_of_their_buckets_and_rows_of_none_nothing():
    rows = {
        "ids": np.array([4, 2, 7], dtype=np.uint16),
        "log_probs": np.log(np.array([0.5, 0.3, 0.9], dtype=np.float32)),
        "counts": np.array([2, 0, 1], dtype=np.uint16),
        "tail": np.array([np.log(0.2), -3e38, np.log(0.1)], dtype=np.float32),
        "answers": np.array([-1.0, np.nan, -1.0], dtype=np.float32),
        "best": np.array([4, 9, 7], dtype=np.uint16),
    }
    teacher = CachedTeacher.__new__(CachedTeacher)
    teacher.c, teacher.store = None, SimpleNamespace(manifest=SimpleNamespace(vocabulary=10))
    answers = SimpleNamespace(answer_ids=[4, 9, 7])
    found = teacher.outputs(None, {"teacher_rows": stacked([rows])}, answers, None)
    logits = torch.randn(3, 10, requires_grad=True)
    q = logits.softmax(-1)
    naive = torch.zeros(3)
    for row, buckets in ((0, {4: 0.5, 2: 0.3}), (2, {7: 0.9})):
        rest = 1 - sum(buckets.values())
        others = 1 - sum(q[row, i] for i in buckets)
        kl = sum(p * (np.log(p) - q[row, i].log()) for i, p in buckets.items()) + rest * (np.log(rest) - others.log())
        naive = naive + kl * torch.eye(3)[row]
    loss = forward_kl(found, logits.log_softmax(-1))
    torch.testing.assert_close(loss, naive, rtol=1e-4, atol=1e-5)
    got, wanted = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, naive))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert (got[1] == 0).all()
