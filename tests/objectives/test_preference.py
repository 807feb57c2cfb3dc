"""Preference losses against their definitions, in value and gradient, and how pairs are read and laid out."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import log_softmax
from transformers import CLIPImageProcessor

from mmkd.data.collate import Collator
from mmkd.data.preferences import last_run, preferences
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.errors import DataError
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.objectives import DPO, CrossEntropy, Pairs, SimPO, SparseTargets, token_losses, without_rejected
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer
from tests.objectives.sides import D_S, D_T, N, V, batch, close, gradients, outputs, random_targets, side

# N = 23 tokens: an earlier answer of pair 1, its chosen and rejected one, then pair 2, its rejected answer first.
MARKS = [0] * 3 + [1] * 4 + [-1] * 7 + [-2] * 1 + [2] * 8


def step(y, marks=MARKS, calls=None, normalizer=2.0):
    marks = torch.tensor(marks)
    return replace(batch(y, 1.0, calls), pairs=Pairs(marks, int(marks.max()), normalizer))


def naive_dpo(zs, zt, y, beta):  # Rafailov et al. 2023, eq. 7, pair by pair
    policy, reference = (log_softmax(z, -1)[torch.arange(N), y] for z in (zs, zt))
    found = []
    for pair in (1, 2):
        won, lost = (torch.tensor([mark == sign * pair for mark in MARKS]) for sign in (1, -1))
        ratio = beta * (policy[won].sum() - reference[won].sum()) - beta * (policy[lost].sum() - reference[lost].sum())
        found.append(-torch.log(torch.sigmoid(ratio)))
    return sum(found) / 2


def naive_simpo(zs, y, beta, gamma):  # Meng et al. 2024, eq. 6
    policy = log_softmax(zs, -1)[torch.arange(N), y]
    found = []
    for pair in (1, 2):
        won, lost = (torch.tensor([mark == sign * pair for mark in MARKS]) for sign in (1, -1))
        found.append(-torch.log(torch.sigmoid(beta * policy[won].mean() - beta * policy[lost].mean() - gamma)))
    return sum(found) / 2


@pytest.mark.parametrize(("chunk", "calls"), [(1, None), (7, None), (7, 6), (512, None)])
def test_both_losses_equal_their_definitions_in_value_and_gradient(chunk, calls):
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    zs, zt = hs @ fs.weight.T, (ht @ ft.weight.T).detach()
    cases = [
        (DPO(beta=0.3, chunk=chunk), outputs(ht, ft), naive_dpo(zs, zt, y, 0.3)),
        (SimPO(beta=2.0, gamma=0.5, chunk=chunk), None, naive_simpo(zs, y, 2.0, 0.5)),
    ]
    for objective, teacher, expected in cases:
        found = objective(outputs(hs, fs), teacher, step(y, calls=calls))
        close([found.loss], [expected], torch.float64)
        close(gradients(found.loss, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)
        assert found.report[objective.name].mean == pytest.approx(float(expected.detach()))
    assert ht.grad is None


def test_log_probs_that_a_cache_kept_are_reference_enough():
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    kept = log_softmax(ht @ ft.weight.T, -1).detach()[torch.arange(N), y]
    none = torch.zeros(N, 1)
    sparse = SparseTargets(none.long(), none, none, none[:, 0], kept, y, V)
    live, cached = (DPO()(outputs(hs, fs), teacher, step(y)) for teacher in (outputs(ht, ft), sparse))
    close([cached.loss], [live.loss], torch.float64)


def test_a_cache_that_lacks_an_answer_token_is_refused_by_its_id():
    (hs, fs), y = side(D_S, V), random_targets()
    none, kept = torch.zeros(N, 1), torch.zeros(N)
    kept[[0, 4]] = torch.nan  # the first is of an earlier answer, which no pair reads
    sparse = SparseTargets(none.long(), none, none, none[:, 0], kept, y, V)
    with pytest.raises(DataError, match=rf"1 answer tokens of this batch \(ids \[{y[4]}\] of the student"):
        DPO()(outputs(hs, fs), sparse, step(y))


def test_a_student_that_is_its_reference_starts_at_log_two():
    hidden, head = side(D_S, V)
    found = DPO()(outputs(hidden, head), outputs(hidden, head), step(random_targets()))
    assert float(found.loss.detach()) == pytest.approx(math.log(2))
    (gradient,) = gradients(found.loss, hidden)
    assert gradient[:3].abs().sum() == 0  # of no pair
    assert gradient[3:].abs().sum() > 0


def test_two_micro_batches_of_a_pair_sum_to_one_of_both():
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    whole = DPO()(outputs(hs, fs), outputs(ht, ft), step(y))
    first, second = slice(0, 14), slice(14, N)
    halves = [
        DPO()(outputs(hs[at], fs), outputs(ht[at], ft), step(y[at], marks))
        for at, marks in ((first, MARKS[first]), (second, [mark // 2 for mark in MARKS[second]]))
    ]
    close([halves[0].loss + halves[1].loss], [whole.loss], torch.float64)


def test_beside_it_token_losses_learn_nothing_from_rejected_answers():
    (hs, fs), y = side(D_S, V), random_targets()
    found = token_losses([(CrossEntropy(), 1.0)], *without_rejected(outputs(hs, fs), None, step(y)))
    kept = torch.tensor([mark >= 0 for mark in MARKS])
    expected = -log_softmax(hs @ fs.weight.T, -1)[torch.arange(N), y][kept].sum()
    close([found.loss], [expected], torch.float64)
    assert found.report["ce"].count == kept.sum()
    assert gradients(found.loss, hs)[0][~kept].abs().sum() == 0


# --- data ------------------------------------------------------------------------------------------------------------


def collator(max_length: int = 256, packing: bool = False, pairs: bool = True) -> Collator:
    tokenizer = byte_tokenizer(image=True)
    size = {"height": 8, "width": 8}
    images = CLIPImageProcessor(size=size, do_center_crop=False, crop_size=size)
    processor = MmkdProcessor(images, tokenizer, chat_template=chat_template("qa", tokenizer), image_tokens=4)
    return Collator(processor, max_length, packing=packing, pairs=pairs)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pair(name: str, chosen: str, rejected: str | None, before: tuple[Turn, ...] = ()) -> Record:
    turns = [*before, Turn("user", "what?"), Turn("assistant", chosen, rejected=rejected)]
    return Record(name, turns, [picture()])


@pytest.mark.parametrize("packing", [False, True])
def test_a_pair_is_two_chats_with_the_image_wherever_they_stand(packing):
    earlier = (Turn("user", "how many?"), Turn("assistant", "two"))
    one = collator(packing=packing)
    made = one([pair("a", "a red one", "blue", earlier), pair("b", "yes", "")])
    assert sorted(made["sample_ids"]) == ["a", "a", "b", "b"]
    assert len(made["image_tiles"]) == (4 if packing else 2)  # a twin's is its sample's
    assert made["input_ids"].shape[0] == (1 if packing else 4)
    decode = one.processor.tokenizer.decode
    said = {n: decode(made["labels"][made["preference"] == n]).replace("</s>", "") for n in (1, -1, 2, -2)}
    assert {n: text.strip() for n, text in said.items()} == {1: "a red one", -1: "blue", 2: "yes", -2: ""}
    others = (made["labels"] != -100) & (made["preference"] == 0)  # "two", in the chosen chat alone
    assert decode(made["labels"][others]).count("two") == 1
    assert (made["preference"][made["labels"] == -100] == 0).all()


def test_without_an_objective_for_pairs_a_record_is_its_better_answer():
    plain = collator(pairs=False)
    made, same = plain([pair("a", "red", "blue")]), plain([pair("a", "red", None)])
    assert "preference" not in made
    assert torch.equal(made["labels"], same["labels"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pair("a", "red", None), "no preference pair"),
        (pair("a", "red", "red "), "the chosen one, too"),
        (pair("a", "red", "blue", (Turn("user", "q"), Turn("assistant", "x", rejected="y"))), "Leave `turns` out"),
        (pair("a", "red", "blue", (Turn("user", "q" * 150), Turn("assistant", "x" * 150))), "not shortened|too|tokens"),
    ],
)
def test_what_is_no_pair_or_does_not_fit_whole_is_set_aside(record, message):
    with pytest.raises(BadRow, match=message):
        collator().prepare(record)


def test_the_files_of_preference_trainers_are_a_source(tmp_path):
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = [
        {"id": "x", "images": ["a.png"], "prompt": "what?", "chosen": "red", "rejected": "blue"},
        {
            "prompt": [{"role": "system", "content": "Look."}, {"role": "user", "content": content}],
            "chosen": [{"role": "assistant", "content": "red"}],
            "rejected": [{"role": "assistant", "content": ""}],
        },
        {"prompt": "what?", "chosen": "red"},
        {"prompt": "what?", "chosen": "red", "rejected": "blue", "images": 5},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = preferences(str(tmp_path / "pairs.jsonl"))
    assert found[0].turns == [Turn("user", "what?"), Turn("assistant", "red", rejected="blue")]
    assert found[0].images == [str(tmp_path / "a.png")]
    assert [(turn.role, turn.text) for turn in found[1].turns] == [
        ("system", "Look."), ("user", "what?"), ("assistant", "red")
    ]  # fmt: skip
    assert found[1].turns[-1].rejected == ""
    with pytest.raises(BadRow, match="line 3: not a preference pair"):
        found[2]
    with pytest.raises(BadRow, match="line 4: images is a int; allowed: a list"):
        found[3]


def test_the_last_run_of_a_mask():
    assert last_run([1, 0, 1, 1, 0]) == [0, 0, 1, 1, 0]
    assert last_run([1, 1]) == [1, 1]
    assert last_run([0]) == [0]
