"""FIRST: how sharp the top k should be, chosen on validation rows."""

import numpy as np
import pytest
import torch

from mmkd.config.schema import SourceSection
from mmkd.data.records import Record, Turn
from mmkd.data.sources import open_source
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.objectives.sparse import SparseTargets, forward_kl
from mmkd.teachers.calibration import (
    FOLDER,
    calibrate,
    calibration_error,
    choose,
    recalibrated,
    require_calibrated,
    validation_identity,
)
from mmkd.teachers.edited import row_digest
from mmkd.teachers.logit_store import open_for_filling, write_shard
from tests.teachers.test_logit_store import VALUES, answers, fill, key, manifest

N, K, V = 4000, 5, 40


def naive_error(confidence, hits, bins):
    """Naeini et al. 2015, bin by bin."""
    total = 0.0
    for i in range(bins):
        inside = [n for n, p in enumerate(confidence) if i / bins < p <= (i + 1) / bins or (p == 0 and i == 0)]
        if inside:
            accuracy = sum(hits[n] for n in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[n] for n in inside) / len(inside))
    return total


def sure_teacher(share, seed=0):
    """Top-k log-probabilities of a teacher that says 0.9 and is right in `share` of the cases."""
    chance = torch.Generator().manual_seed(seed)
    p = torch.tensor([0.9, 0.05, 0.03, 0.015, 0.005]).repeat(N, 1)
    return p.log(), torch.rand(N, generator=chance) < share


@pytest.mark.parametrize("bins", [1, 3, 15])
def test_the_error_is_the_definition_also_at_the_edges_of_bins(bins):
    chance = torch.Generator().manual_seed(1)
    confidence = torch.cat([torch.rand(200, generator=chance).double(), torch.tensor([0.0, 1.0, 1 / 3]).double()])
    hits = torch.rand(203, generator=chance) < confidence
    expected = naive_error(confidence.tolist(), hits.tolist(), bins)
    assert calibration_error(confidence, hits, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("c", [0.05, 0.2, 1.0])
def test_recalibrated_is_a_softmax_over_probabilities_not_over_logits(c):
    log_p = torch.randn(7, K, dtype=torch.double).log_softmax(-1)
    p = log_p.exp()
    expected = (p / c).exp() / (p / c).exp().sum(-1, keepdim=True)
    torch.testing.assert_close(recalibrated(log_p, c).exp(), expected)
    assert torch.equal(recalibrated(log_p, c).argsort(), log_p.argsort())


def test_values_that_the_papers_formula_gives_by_hand():
    """0.9 among five: 0.375 at c = 1, 0.999 at c = 0.1."""
    log_p, _ = sure_teacher(1)
    found = [float(recalibrated(log_p[:1], c).exp()[0, 0]) for c in (1.0, 0.1)]
    assert found == pytest.approx([0.3750, 0.9993], abs=5e-3)


@pytest.mark.parametrize("share", [0.6, 0.97])
def test_c_brings_a_teacher_that_is_too_sure_or_not_sure_enough_to_what_it_gets_right(share):
    log_p, hits = sure_teacher(share)
    c, before, after = choose(log_p, hits)
    right = float(hits.double().mean())
    assert before == pytest.approx(abs(0.9 - right), abs=1e-6)
    assert after < 0.02 < before
    assert float(recalibrated(log_p[:1], c).exp()[0, 0]) == pytest.approx(right, abs=0.02)


def test_the_loss_on_recalibrated_targets_is_their_kl_in_value_and_gradient():
    torch.manual_seed(0)
    ids = torch.stack([torch.randperm(V)[:K] for _ in range(6)])
    log_p = recalibrated(torch.randn(6, V).log_softmax(-1).gather(1, ids), 0.2)
    some = torch.zeros(6)
    targets = SparseTargets(ids, log_p, log_p.exp(), None, some, some.long(), V)
    logits = torch.randn(6, V, requires_grad=True)
    p = torch.zeros(6, V).scatter(1, ids, log_p.exp())
    naive = (torch.special.xlogy(p, p) - p * logits.log_softmax(-1)).sum(-1)
    found = forward_kl(targets, logits.log_softmax(-1))
    torch.testing.assert_close(found, naive)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, naive)))
    assert (found > 0).all()


def held_out(tmp_path, question="what is it?"):
    """A section of one validation row, which is written."""
    tmp_path.mkdir(exist_ok=True)
    asked = Record("v0", [Turn("user", question), Turn("assistant", "red")])
    write_jsonl(tmp_path / "held_out.jsonl", [asked])
    return [SourceSection(source="jsonl", path=str(tmp_path / "held_out.jsonl"))]  # pyright: ignore


def validated(tmp_path, tokens=400, row=9, **changes):
    """A store, and beside it the answers to validation rows."""
    folder = fill(tmp_path / "s", manifest(k=K))
    section = held_out(tmp_path)
    there, digests = validation_identity(section, 256), [row_digest(record) for record in open_source(section[0])]
    wanted = manifest(**({"k": K, "data": there, "rows": 1, "dtype": "float32", "hits": True} | changes))
    open_for_filling(folder / FOLDER, wanted)
    log_p, hits = sure_teacher(0.6)
    rows = piece(log_p[:tokens].flatten().numpy(), hits[:tokens].numpy())
    write_shard(folder / FOLDER, 0, [(key(row), rows)] if tokens else [], digests)
    return folder


def test_what_is_chosen_is_kept_with_the_store_it_is_for(tmp_path):
    folder = validated(tmp_path)
    made = calibrate(folder)
    assert made.tokens == 400
    assert "validation tokens: 2" in str(made) or "validation tokens: 3" in str(made)
    rows = held_out(tmp_path)
    require_calibrated(folder, rows, 256)
    with pytest.raises(ConfigError, match="was made for another rows; run mmkd cache"):
        require_calibrated(folder, [SourceSection(source="easyvqa", split="other")], 256)  # pyright: ignore
    held_out(tmp_path, "what is that?")
    with pytest.raises(ConfigError, match=r"teacher.validation was edited: .* 1 of 1 rows .* row 0: record 'v0'"):
        require_calibrated(folder, rows, 256)
    (folder / "manifest.json").write_text(manifest(k=K, teacher="f" * 64).model_dump_json())
    with pytest.raises(ConfigError, match="was made for another store"):
        require_calibrated(folder, rows, 256)


def test_c_chosen_on_rows_that_were_edited_and_asked_about_since_is_of_other_rows(tmp_path):
    folder, rows = validated(tmp_path), held_out(tmp_path)
    calibrate(folder)
    held_out(tmp_path, "what is that?")
    log_p, hits = sure_teacher(0.6)
    digests = [row_digest(record) for record in open_source(rows[0])]
    write_shard(folder / FOLDER, 0, [(key(9), piece(log_p.flatten().numpy(), hits.numpy()))], digests)
    with pytest.raises(ConfigError, match="was made for another rows; run mmkd cache"):
        require_calibrated(folder, rows, 256)
    calibrate(folder)
    require_calibrated(folder, rows, 256)


def test_a_store_that_was_never_calibrated_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"has no calibration.json; mmkd cache with the same config"):
        require_calibrated(validated(tmp_path), held_out(tmp_path), 256)


@pytest.mark.parametrize("text", ["", "[]", '{"c": -1}', "{" * 5000])
def test_a_broken_calibration_is_named(tmp_path, text):
    folder = validated(tmp_path)
    (folder / "calibration.json").write_text(text)
    with pytest.raises(ConfigError, match=r"calibration.json cannot be read .*; remove it"):
        require_calibrated(folder, held_out(tmp_path), 256)


def test_validation_rows_that_the_store_holds_too_are_refused_whatever_their_source_is_called(tmp_path):
    with pytest.raises(ConfigError, match=r"1 of its 1 rows, by images and text, stand in data\.mixture too"):
        calibrate(validated(tmp_path, row=1))
    assert not (tmp_path / "s" / "calibration.json").exists()


def test_a_row_of_many_that_the_store_holds_too_does_not_choose(tmp_path):
    expected = calibrate(validated(tmp_path / "alone"))
    folder = validated(tmp_path / "beside", rows=11, shard_rows=11)
    log_p, hits = sure_teacher(0.6)
    samples = [
        (key(10 + n), piece(log_p[40 * n : 40 * n + 40].flatten().numpy(), hits[40 * n : 40 * n + 40].numpy()))
        for n in range(10)
    ]
    never_right = piece(log_p[:400].flatten().numpy(), np.zeros(400))
    write_shard(folder / FOLDER, 0, [(key(1), never_right), *samples], [bytes(32)] * 11)
    found = calibrate(folder)
    assert (found.c, found.ece_after, found.tokens) == (expected.c, expected.ece_after, 400)


def piece(log_probs: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    return answers(0, len(hits), K) | {"log_probs": log_probs, "hits": hits.astype(np.uint8)}


def test_validation_rows_of_which_none_is_usable_are_an_error(tmp_path):
    with pytest.raises(DataError, match="has no usable row"):
        calibrate(validated(tmp_path, tokens=0))


def test_the_constants_of_stores_without_all_this_stay_readable():
    assert manifest().hidden_layers == ()
    assert not manifest().hits
    assert "hits" not in VALUES
