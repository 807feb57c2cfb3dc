"""Attention relations against MiniLMv2's definition, row by row, with packed samples and unequal prefixes and heads."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mmkd.errors import ConfigError
from mmkd.models.rotation import query_mover
from mmkd.objectives import AnswerBatch, AttentionRelations, LayerAttention, Outputs

B, T, R = 3, 6, 4
# Row 1 holds two packed samples; the second of them, and row 2, have one answer token each.
SEGMENTS = torch.tensor([[0] * 6, [0, 0, 0, 0, 1, 1], [0] * 6])
TEXT_MASK = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6, [1, 1, 1, 1, 1, 0]]).bool()
ROWS = torch.tensor([1, 0, 1, 1, 0, 2, 0])  # in no order
POSITIONS = torch.tensor([2, 4, 5, 1, 2, 3, 5])
N = len(ROWS)
STUDENT = {"heads": 4, "shared": 2, "width": 8, "prefix": 3}
TEACHER = {"heads": 2, "shared": 1, "width": 12, "prefix": 7}  # other heads, widths and prefix


def batch(keep=slice(None), normalizer=1.0):
    rows, positions = ROWS[keep], POSITIONS[keep]
    return AnswerBatch(torch.zeros(len(rows)).long(), rows, positions, TEXT_MASK, SEGMENTS, normalizer)


def side(seed, heads, shared, width, prefix, layers=(0,), dtype=torch.float64, rows=N):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    attention = {
        layer: LayerAttention(
            random(rows, heads, width),
            random(B, shared, prefix + T, width),
            random(B, shared, prefix + T, 2 * width),
            width**-0.5,
        )
        for layer in layers
    }
    slots = torch.zeros(B, prefix, dtype=torch.bool)
    return Outputs(random(rows, 4), lambda h: h, attention, slots, slots, slots.long())


def naive_relation(kind, layer, n, prefix):
    """Softmax rows of one answer row, [R, tokens it runs over]."""
    row, position = int(ROWS[n]), int(POSITIONS[n])
    if kind == "qq":
        own = [m for m in range(N) if ROWS[m] == row and SEGMENTS[row, POSITIONS[m]] == SEGMENTS[row, position]]
        left, right = layer.query[n].flatten(), torch.stack([layer.query[m].flatten() for m in own])
    else:
        states = layer.key if kind == "kk" else layer.value
        own = [t for t in range(T) if TEXT_MASK[row, t] and SEGMENTS[row, t] == SEGMENTS[row, position]]
        left = states[row, :, prefix + position].flatten()
        right = torch.stack([states[row, :, prefix + t].flatten() for t in own])
    width = len(left) // R
    found = []
    for head in range(R):
        at = slice(head * width, (head + 1) * width)
        found.append(torch.softmax(right[:, at] @ left[at] / width**0.5, -1))
    return torch.stack(found)


def naive(student, teacher, kinds, s=0, t=0):
    total = 0.0
    for n in range(N):
        for kind in kinds:
            wanted = naive_relation(kind, teacher.attention[t], n, TEACHER["prefix"]).detach()
            found = naive_relation(kind, student.attention[s], n, STUDENT["prefix"])
            total = total + (wanted * (wanted.log() - found.log())).sum(-1).mean()
    return total


def objective(students=1, teachers=1, **options):
    made = AttentionRelations(heads=R, **options)
    made.needs(students, teachers)
    return made


def tensors(outputs):
    return [x for layer in outputs.attention.values() for x in (layer.query, layer.key, layer.value)]


@pytest.mark.parametrize("chunk", [1, 2, 256])
@pytest.mark.parametrize("kinds", [["qq"], ["kk"], ["vv"], ["qq", "kk", "vv"]])
def test_value_and_gradient_equal_the_definition_between_unequal_heads_widths_and_prefixes(kinds, chunk):
    student, teacher = side(1, **STUDENT), side(2, **TEACHER)
    found = objective(relations=kinds, chunk=chunk)(student, teacher, batch(normalizer=N))
    expected = naive(student, teacher, kinds) / N
    torch.testing.assert_close(found.loss, expected)
    for a, b in zip(*(torch.autograd.grad(x, tensors(student), allow_unused=True) for x in (found.loss, expected))):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("chunk", "kept"), [(1, False), (256, True)])
def test_the_relations_of_all_answer_rows_are_kept_for_backward_only_where_they_fit_a_chunk(chunk, kept):
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        objective(chunk=chunk)(side(1, **STUDENT), side(2, **TEACHER), batch())
    assert ((B, R, 3, T) in shapes) == kept  # at most three answer rows in a row of the batch


def test_it_is_the_mean_over_layers_of_unequal_depth_and_the_sum_over_relations():
    student, teacher = side(1, **STUDENT, layers=(0, 1)), side(2, **TEACHER, layers=(1, 2))
    made = AttentionRelations(heads=R, layers="all")
    needs = made.needs(2, 3)
    assert (needs.student_attention, needs.teacher_attention) == ((0, 1), (1, 2))
    losses = made(student, teacher, batch())
    kinds = ("qq", "kk", "vv")
    expected = (naive(student, teacher, kinds, 0, 1) + naive(student, teacher, kinds, 1, 2)) / 2
    torch.testing.assert_close(losses.loss, expected)
    parts = [losses.report[f"relations_{kind}"].mean for kind in kinds]
    assert losses.report["relations"].mean == pytest.approx(sum(parts)) == pytest.approx(expected.item() / N)


def test_by_default_the_last_layers_are_compared():
    needs = AttentionRelations().needs(3, 5)
    assert (needs.student_attention, needs.teacher_attention) == ((2,), (4,))


def test_a_side_against_itself_gives_loss_and_gradient_zero():
    student, teacher = side(1, **STUDENT), side(1, **STUDENT)
    loss = objective()(student, teacher, batch()).loss
    assert abs(loss.item()) < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(loss, tensors(student)))


def test_gradients_reach_the_text_alone_and_the_teacher_not_at_all():
    student, teacher = side(1, **STUDENT), side(2, **TEACHER)
    objective()(student, teacher, batch()).loss.backward()
    layer = student.attention[0]
    assert layer.query.grad.abs().sum() > 0
    for states in (layer.key, layer.value):
        reached = states.grad.abs().sum((1, 3)) > 0  # [B, S]
        assert not reached[:, : STUDENT["prefix"]].any()
        assert torch.equal(reached[:, STUDENT["prefix"] :], TEXT_MASK)
    assert all(x.grad is None for x in tensors(teacher))


def test_a_batch_without_answers_gives_zero_tied_to_the_student():
    student, teacher = side(1, **STUDENT, rows=0), side(2, **TEACHER, rows=0)
    losses = objective()(student, teacher, batch(keep=[]))
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert all(x.grad.abs().sum() == 0 for x in tensors(student))
    assert losses.report["relations"].count == 0


def test_fp32_is_exact_and_bf16_near_also_under_autocast():
    exact = objective()(side(1, **STUDENT), side(2, **TEACHER), batch()).loss
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        sides = [side(seed, **shape, dtype=dtype) for seed, shape in ((1, STUDENT), (2, TEACHER))]
        loss = objective()(*sides, batch()).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(objective()(*sides, batch()).loss, loss)


def test_rotated_queries_and_keys_are_compared_as_they_were_before_the_rotation():
    """Cut into other heads, rotated ones would depend on the position at which the text begins."""
    plain = [side(1, **STUDENT), side(2, **TEACHER)]
    expected = objective()(*plain, batch()).loss
    rotated = []
    for (seed, shape), start in zip(((1, STUDENT), (2, TEACHER)), (3, 40), strict=True):
        outputs = side(seed, **shape)
        config = LlamaConfig(hidden_size=shape["width"] * shape["heads"], num_attention_heads=shape["heads"])
        move = query_mover(LlamaRotaryEmbedding(config))
        outputs.text_positions = start + torch.arange(T).expand(B, T)
        outputs.move_queries = move
        layer = outputs.attention[0]
        text = layer.key[:, :, -T:].transpose(1, 2).flatten(0, 1)  # [B * T, Hkv, d]
        text = move(text, outputs.text_positions.flatten()).unflatten(0, (B, T)).transpose(1, 2)
        layer.key = torch.cat([layer.key[:, :, :-T], text], 2)
        layer.query = move(layer.query, outputs.text_positions[ROWS, POSITIONS])
        rotated.append(outputs)
    torch.testing.assert_close(objective()(*rotated, batch()).loss, expected, rtol=1e-5, atol=0)
    for outputs in rotated:
        outputs.move_queries = None
    assert abs(objective()(*rotated, batch()).loss / expected - 1) > 1e-2


def test_relation_heads_that_do_not_divide_are_refused_with_those_that_do():
    made = AttentionRelations(heads=5)
    made.needs(1, 1)
    message = r"heads=5 does not divide .*student layer 0 keys \(16\).*teacher layer 0 queries \(24\).*: 1, 2, 4\."
    with pytest.raises(ConfigError, match=message):
        made(side(1, **STUDENT), side(2, **TEACHER), batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": ["qk"]}, "relations='qk', expected one of: qq, kk, vv"),
        ({"relations": []}, r"relations=\[\], expected one of: qq, kk, vv"),
        ({"relations": ["qq", "qq"]}, "names one twice"),
        ({"heads": 0}, "heads=0, expected a whole number >= 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message):
        AttentionRelations(**options)
