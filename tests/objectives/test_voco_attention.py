"""Attention distillation against its definition: two sets of keys, their outputs and masses."""

import pytest
import torch
from torch.nn.functional import smooth_l1_loss

from mmkd.errors import ConfigError
from mmkd.objectives import AnswerBatch, LayerAttention, Outputs, VocoAttention
from mmkd.objectives.image_attention import image_attention, rows_with_image
from mmkd.objectives.layer_pairs import layer_pairs

B, T, H, HKV, D, DV = 3, 6, 4, 2, 8, 10
VISION, COMPRESSED = 5, 2
# Row 0: one sample with an image. Row 1: text only. Row 2: two packed samples, each with an image.
SEGMENTS = torch.tensor([[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1]])
TEXT_MASK = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6, [1, 1, 1, 1, 1, 0]]).bool()  # padding left and right
ROWS = torch.tensor([2, 0, 1, 2, 0, 2])  # in no order
POSITIONS = torch.tensor([4, 2, 3, 1, 5, 3])
N = len(ROWS)
WITH_IMAGE = ROWS != 1


def batch(normalizer=1.0):
    return AnswerBatch(torch.zeros(N, dtype=torch.long), ROWS, POSITIONS, TEXT_MASK, SEGMENTS, normalizer)


def side(count, seed, layers=(0,), dtype=torch.float64, **fields):
    """A side whose images have `count` tokens each; prefix: sink, then room for two images a row."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    prefix = 1 + 2 * count
    image = torch.zeros(B, prefix, dtype=torch.bool)
    image[0, 1 : 1 + count] = True
    image[2, 1:] = True
    sink = torch.zeros_like(image)
    sink[:, 0] = True
    slot_segments = torch.zeros(B, prefix, dtype=torch.long)
    slot_segments[2, 1 + count :] = 1
    attention = {
        layer: LayerAttention(
            random(N, H, D), random(B, HKV, prefix + T, D), random(B, HKV, prefix + T, DV), D**-0.5, **fields
        )
        for layer in layers
    }
    hidden = random(N, 4)
    return Outputs(hidden, lambda h: h, attention, image, sink, slot_segments, compressed=count != VISION)


def definition(query, layer, outputs, n, row, position):
    """o and lse over the image and lse over the rest, for one answer row, key by key: [H, dv], [H], [H]."""
    prefix = outputs.image_slots.shape[1]
    segment = SEGMENTS[row, position]
    key = layer.key[row].repeat_interleave(H // HKV, 0)  # [H, S, d]
    value = layer.value[row].repeat_interleave(H // HKV, 0)
    scores = torch.einsum("hd,hsd->hs", query[n], key) * layer.scaling
    if layer.softcap:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    if layer.bias is not None:
        scores = torch.cat([scores[:, :prefix] + layer.bias[row], scores[:, prefix:]], 1)
    image = [s for s in range(prefix) if outputs.image_slots[row, s] and outputs.slot_segments[row, s] == segment]
    rest = [s for s in range(prefix) if outputs.sink_slots[row, s]]
    rest += [prefix + t for t in range(position + 1) if TEXT_MASK[row, t] and SEGMENTS[row, t] == segment]
    of_image = torch.einsum("hs,hsd->hd", scores[:, image].softmax(-1), value[:, image])
    return of_image, scores[:, image].logsumexp(-1), scores[:, rest].logsumexp(-1)


def naive(student, teacher, layer=0, queries="own", beta=0.1, mass="share"):
    """L of VocoAttention's docstring summed over answer rows."""
    ours, theirs, total = student.attention[layer], teacher.attention[layer], 0.0
    for n in WITH_IMAGE.nonzero()[:, 0].tolist():
        row, position = int(ROWS[n]), int(POSITIONS[n])
        o_v, lse_v, lse_t = (x.detach() for x in definition(theirs.query, theirs, teacher, n, row, position))
        query = ours.query if queries == "own" else theirs.query.detach()
        o_c, lse_c, lse_own = definition(query, ours, student, n, row, position)
        lse_own = lse_own if queries == "own" else lse_t
        w_v, w_c = torch.sigmoid(lse_v - lse_t), torch.sigmoid(lse_c - lse_own)
        wanted = w_v[:, None] * o_v
        segment = SEGMENTS[row, position]
        values = theirs.value[row, :, : teacher.image_slots.shape[1]].detach()
        energy = values[:, teacher.image_slots[row] & (teacher.slot_segments[row] == segment)].square().sum(-1).mean()
        error = (wanted - w_c[:, None] * o_c).square().sum(-1) / energy
        pair = (w_c, w_v) if mass == "share" else (lse_c - lse_own, lse_v - lse_t)
        total = total + (error + beta * smooth_l1_loss(*pair, reduction="none")).mean()
    return total


def objective(students=1, teachers=1, **options):
    made = VocoAttention(**options)
    made.needs(students, teachers)
    return made


def gradients(loss, layer):
    return torch.autograd.grad(loss, [layer.query, layer.key, layer.value], allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("queries", ["own", "teacher"])
@pytest.mark.parametrize("chunk", [1, 2, 256])
@pytest.mark.parametrize("fields", [{}, {"softcap": 2.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("mass", ["share", "score"])
def test_value_and_gradient_equal_the_definition(queries, chunk, fields, mass):
    student, teacher = side(COMPRESSED, 1, **fields), side(VISION, 2, **fields)
    options = {"queries": queries, "mass": mass}
    found = objective(chunk=chunk, **options)(student, teacher, batch(normalizer=N)).loss
    expected = naive(student, teacher, **options) / N
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found, student.attention[0]), gradients(expected, student.attention[0]), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_a_bias_on_the_slots_enters_the_scores_and_learns():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    bias = torch.randn(B, 1, 1 + 2 * COMPRESSED, dtype=torch.float64).requires_grad_()
    student.attention[0].bias = bias
    found, expected = objective()(student, teacher, batch()).loss, naive(student, teacher)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, bias), torch.autograd.grad(expected, bias))


def test_image_and_rest_merge_to_the_layers_whole_attention():
    teacher = side(VISION, 2)
    layer = teacher.attention[0]
    rows = rows_with_image(batch(), [teacher])
    image, sink = rows.sees(teacher)
    read, image_lse, rest_lse = image_attention(rows.lay_out(layer.query), layer, image, sink, rows.text, 256)
    for r, n in enumerate(rows.index.tolist()):
        row = int(ROWS[n])
        visible = torch.cat([(image | sink)[row, rows.place[r]], rows.text[row, rows.place[r]]])
        key = layer.key[row].repeat_interleave(H // HKV, 0)[:, visible]
        value = layer.value[row].repeat_interleave(H // HKV, 0)[:, visible]
        probs = (torch.einsum("hd,hsd->hs", layer.query[n], key) * layer.scaling).softmax(-1)
        from_image = torch.cat([image[row, rows.place[r]], torch.zeros(T, dtype=torch.bool)])[visible]
        whole = torch.einsum("hs,hsd->hd", probs, value)
        rest = torch.einsum("hs,hsd->hd", probs[:, ~from_image], value[:, ~from_image])
        torch.testing.assert_close(rows.pick(read)[r] + rest, whole, atol=1e-12, rtol=1e-12)
        share = torch.sigmoid(rows.pick(image_lse - rest_lse)[r])
        torch.testing.assert_close(share, probs[:, from_image].sum(-1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("queries", ["own", "teacher"])
def test_compressed_tokens_equal_to_the_vision_tokens_give_loss_and_gradient_zero(queries):
    student, teacher = side(VISION, 2), side(VISION, 2)
    loss = objective(queries=queries)(student, teacher, batch()).loss
    assert loss.item() < 1e-28  # the same sums, in another order
    for gradient in gradients(loss, student.attention[0]):
        assert gradient is None or gradient.abs().max() < 1e-12


def test_rows_without_an_image_contribute_exactly_nothing():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    before = objective()(student, teacher, batch()).loss
    with torch.no_grad():
        student.attention[0].key[1] += 3.0
        student.attention[0].query[~WITH_IMAGE] -= 3.0
    assert torch.equal(objective()(student, teacher, batch()).loss, before)


def test_a_batch_without_images_or_answers_gives_zero_tied_to_the_student():
    for keep in (~WITH_IMAGE, torch.zeros(N, dtype=torch.bool)):
        student, teacher = side(COMPRESSED, 1), side(VISION, 2)
        for outputs in (student, teacher):
            outputs.attention[0].query = outputs.attention[0].query[keep]
        chosen = AnswerBatch(torch.zeros(int(keep.sum())).long(), ROWS[keep], POSITIONS[keep], TEXT_MASK, SEGMENTS, 1.0)
        losses = objective(gram=0.1)(student, teacher, chosen)
        losses.loss.backward()
        assert losses.loss.item() == 0.0
        assert student.answer_hidden.grad.abs().sum() == 0.0
        assert losses.report["attention"].count == 0


@pytest.mark.parametrize("queries", ["own", "teacher"])
@pytest.mark.parametrize("scale", [0.0, 300.0])
def test_images_that_get_no_attention_or_all_of_it_give_no_nan(queries, scale):
    student, teacher = side(COMPRESSED, 1, dtype=torch.float32), side(VISION, 2, dtype=torch.float32)
    for outputs in (student, teacher):
        with torch.no_grad():
            prefix = outputs.image_slots.shape[1]
            outputs.attention[0].query.abs_()
            outputs.attention[0].key[:, :, 1:prefix] = -scale if outputs is teacher else scale
    loss = objective(queries=queries)(student, teacher, batch()).loss
    assert torch.isfinite(loss)
    assert all(g is None or torch.isfinite(g).all() for g in gradients(loss, student.attention[0]))


def test_with_the_teachers_queries_the_gradient_reaches_only_keys_and_values_of_compressed_tokens():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    objective(queries="teacher")(student, teacher, batch()).loss.backward()
    layer = student.attention[0]
    prefix = student.image_slots.shape[1]
    assert layer.query.grad is None
    for tensor in (layer.key, layer.value):
        reached = tensor.grad.abs().sum((1, 3)) > 0  # [B, S]
        assert torch.equal(reached[:, :prefix], student.image_slots)
        assert not reached[:, prefix:].any()
    for tensor in (teacher.attention[0].query, teacher.attention[0].key, teacher.attention[0].value):
        assert tensor.grad is None


def test_with_own_queries_the_values_of_text_get_no_gradient_and_the_teacher_none_at_all():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    objective()(student, teacher, batch()).loss.backward()
    layer, prefix = student.attention[0], student.image_slots.shape[1]
    assert (layer.query.grad[WITH_IMAGE].abs().amax((1, 2)) > 0).all()
    assert layer.value.grad[:, :, prefix:].abs().max() == 0
    assert teacher.attention[0].key.grad is None


def test_bf16_stays_within_one_percent_of_fp32():
    exact = objective()(side(COMPRESSED, 1), side(VISION, 2), batch()).loss
    rough = objective()(side(COMPRESSED, 1, dtype=torch.bfloat16), side(VISION, 2, dtype=torch.bfloat16), batch()).loss
    assert rough.dtype == torch.float32
    assert abs(rough.item() / exact.item() - 1) < 1e-2


def test_autocast_does_not_lower_the_precision():
    student, teacher = side(COMPRESSED, 1, dtype=torch.float32), side(VISION, 2, dtype=torch.float32)
    plain = objective()(student, teacher, batch()).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective()(student, teacher, batch()).loss, plain)


def test_two_halves_sum_to_the_whole():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    whole = objective(gram=0.01)(student, teacher, batch(normalizer=N))
    total = 0.0
    for at in (slice(0, 2), slice(2, N)):
        halves = []
        for outputs in (student, teacher):
            layer = outputs.attention[0]
            cut = LayerAttention(layer.query[at], layer.key, layer.value, layer.scaling)
            halves.append(
                Outputs(
                    outputs.answer_hidden[at],
                    outputs.head,
                    {0: cut},
                    outputs.image_slots,
                    outputs.sink_slots,
                    outputs.slot_segments,
                    compressed=outputs.compressed,
                )
            )
        ids = torch.zeros(len(ROWS[at]), dtype=torch.long)
        part = AnswerBatch(ids, ROWS[at], POSITIONS[at], TEXT_MASK, SEGMENTS, N)
        total = total + objective(gram=0.01)(*halves, part).loss
    torch.testing.assert_close(total, whole.loss)


def test_the_loss_is_the_mean_over_layers_and_the_report_has_each():
    student, teacher = side(COMPRESSED, 1, layers=(0, 1)), side(VISION, 2, layers=(0, 1))
    losses = objective(students=2, teachers=2)(student, teacher, batch())
    torch.testing.assert_close(losses.loss, (naive(student, teacher, 0) + naive(student, teacher, 1)) / 2)
    layer = student.attention[1]
    shares = []
    for n in WITH_IMAGE.nonzero()[:, 0].tolist():
        _, lse_c, lse_t = definition(layer.query, layer, student, n, int(ROWS[n]), int(POSITIONS[n]))
        shares.append(torch.sigmoid(lse_c - lse_t).mean())
    assert losses.report["image_share_student/layer_1"].mean == pytest.approx(torch.stack(shares).mean().item())
    assert losses.report["image_share_student"].count == 2 * WITH_IMAGE.sum()
    assert not losses.report["attention"].total.requires_grad


def test_a_head_that_reads_nothing_from_the_image_counts_no_more_than_one_that_does():
    """Divided by its own |w_V o_V|^2, such a head would drown all others."""
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    with torch.no_grad():
        teacher.attention[0].query[:, 0] = 0.0
        teacher.attention[0].key[:, 0, :] = 0.0
        teacher.attention[0].query[:, 0, 0] = 1.0
        teacher.attention[0].key[:, 0, : teacher.image_slots.shape[1], 0] = -1e3  # head 0: w_V = 0
        student.attention[0].key[:, 0, : student.image_slots.shape[1]] = 1e3 * student.attention[0].query[0, 0]
    assert objective(beta=0.0)(student, teacher, batch(normalizer=int(WITH_IMAGE.sum()))).loss < 10


def test_the_spread_term_pushes_equal_keys_apart_and_is_silent_for_one_token():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    with torch.no_grad():
        key = student.attention[0].key
        key[0, :, 2] = key[0, :, 1] + 0.05 * key[0, :, 2]
    close = objective(gram=1.0)(student, teacher, batch()).loss - objective()(student, teacher, batch()).loss
    (gradient,) = torch.autograd.grad(close, key)
    moved = (key - 0.01 * gradient).detach()

    def likeness(k):
        return torch.cosine_similarity(k[0, :, 1], k[0, :, 2], dim=-1).mean()

    assert likeness(moved) < likeness(key)
    one = side(1, 1)
    extra = objective(gram=1.0)(one, teacher, batch()).loss - objective()(one, teacher, batch()).loss
    (gradient,) = torch.autograd.grad(extra, one.attention[0].key)
    assert gradient.abs().max() < 1e-9


def test_vision_tokens_of_a_student_that_reads_them_are_not_pushed_apart():
    student, teacher = side(VISION, 1), side(VISION, 2)
    assert torch.equal(objective(gram=1.0)(student, teacher, batch()).loss, objective()(student, teacher, batch()).loss)


def test_the_teachers_queries_are_moved_to_where_the_student_reads():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    asked = []
    teacher.query_positions, student.query_positions = POSITIONS + 6, POSITIONS + 9
    teacher.move_queries = lambda query, shift: asked.append(shift) or query + 1.0
    moved = objective(queries="teacher")(student, teacher, batch()).loss
    assert torch.equal(asked[0], torch.full((N,), 3))
    teacher.move_queries = None
    assert moved != objective(queries="teacher")(student, teacher, batch()).loss


def test_sides_with_other_heads_are_refused_with_both_named():
    student, teacher = side(COMPRESSED, 1), side(VISION, 2)
    teacher.attention[0].query = torch.randn(N, 2 * H, D, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"student layer 0 has 4 heads of width 8 .* teacher layer 0 has 8 heads"):
        objective()(student, teacher, batch())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("every 2", [(1, 5), (3, 11)]),
        ([-1, 0], [(3, 11), (0, 2)]),
        ([[1, 0], [3, -1]], [(1, 0), (3, 11)]),
    ],
)
def test_layers_are_matched_by_depth_or_as_told(layers, expected):
    assert layer_pairs("voco_attention", layers, 4, 12) == expected
    needs = VocoAttention(layers=layers).needs(4, 12)
    assert needs.teacher
    assert needs.student_attention == tuple(sorted(s for s, _ in expected))
    assert needs.teacher_attention == tuple(sorted(t for _, t in expected))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("some", "expected all, every n"),
        ([], "expected all, every n"),
        ([4], r"the student has layers 0\.\.3"),
        ([[0, 12]], r"the teacher has layers 0\.\.11"),
        ([0, -4], "names a student layer twice"),
        ([True], "expected all, every n"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        layer_pairs("voco_attention", layers, 4, 12)
