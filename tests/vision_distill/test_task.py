"""Methods on real pairs of families: what they train, what they leave alone, and that they say what is wrong."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmkd.errors import ConfigError, TrainingError
from mmkd.objectives.ofa import ofa_loss
from mmkd.vision_distill.exits import read_staged
from mmkd.vision_distill.methods import METHODS, build_method
from mmkd.vision_distill.task import VisionTask
from tests.vision_distill.tiny import SIDE, convnext, images, mixer, mobilenet, resnet, swin, vit

LABELS = torch.tensor([0, 3, 3, 1])
PAIRS = {"cnn from vit": (resnet, vit), "vit from cnn": (vit, mobilenet), "mixer from swin": (mixer, swin)}


def batch():
    return {"student_pixels": images(4), "teacher_pixels": images(4) * 0.5, "labels": LABELS}


def task_of(student, teacher, *methods, **options):
    torch.manual_seed(0)
    size = (SIDE, SIDE)
    return VisionTask(student(), size, [(m, 1.0) for m in methods], teacher() if teacher else None, size, **options)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_every_parameter_it_can_and_none_of_the_teacher(pair, name):
    task = task_of(*PAIRS[pair], build_method("cross_entropy", {}), build_method(name, {}))
    loss = task.train()(batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert not [n for n, p in task.named_parameters() if p.grad is None]
    assert not any(n.startswith("teacher") for n, _ in task.named_parameters())
    teacher = task.teacher
    if name == "cross_entropy":
        assert teacher is None  # no method asks it, so it is not run
    else:
        assert all(p.grad is None for p in teacher.parameters())
        assert not teacher.training
    assert {"accuracy", name} <= set(task.report)
    assert ("agree" in task.report) == (name != "cross_entropy")


def test_ofa_is_the_final_loss_plus_the_sum_over_four_branches_each_with_its_eps():
    eps = [1.0, 1.1, 1.2, 1.3, 1.5]
    options = {"eps": eps, "form": "released", "final_weight": 2.0, "stage_weight": 0.1, "temperature": 2.0}
    task = task_of(vit, resnet, build_method("ofa", options)).eval()
    given = batch()
    student = read_staged(task.student, task.student_exits, given["student_pixels"])
    teacher = task.teacher(given["teacher_pixels"])

    def loss(logits, e):
        return ofa_loss(logits, teacher, LABELS, eps=e, form="released", temperature=2.0).mean()

    branches = task.methods[0].branches
    stages = [loss(branch(stage), e) for branch, stage, e in zip(branches, student.stages, eps[:4], strict=True)]
    torch.testing.assert_close(task(given), 2.0 * loss(student.logits, 1.5) + 0.1 * sum(stages))


def test_weights_multiply_the_losses():
    methods = [(build_method("cross_entropy", {"smoothing": 0.1}), 0.5), (build_method("kd", {}), 3.0)]
    task = VisionTask(resnet(), (SIDE, SIDE), methods, vit(), (SIDE, SIDE)).eval()
    loss = task(batch())
    parts = {name: ratio.mean for name, ratio in task.report.items()}
    assert loss.item() == pytest.approx(0.5 * parts["cross_entropy"] + 3.0 * parts["kd"], rel=1e-5)
    logits = task.student(batch()["student_pixels"])
    assert parts["cross_entropy"] == pytest.approx(cross_entropy(logits, LABELS, label_smoothing=0.1).item())


def test_each_side_sees_its_own_pixels_and_image_size():
    torch.manual_seed(0)
    ofa, fitnet = build_method("ofa", {}), build_method("fitnet", {})
    task = VisionTask(resnet(), (SIDE, SIDE), [(ofa, 1.0), (fitnet, 1.0)], vit(img_size=32, depth=4), (32, 32)).eval()
    given = batch() | {"teacher_pixels": images(4, side=32)}
    task(given)
    correct = (task.teacher(given["teacher_pixels"]).argmax(-1) == LABELS).sum()
    assert task.report["teacher_accuracy"].total == correct


def test_two_micro_batches_average_to_the_whole_where_samples_do_not_meet():
    """KD, DKD and OFA are means over samples; DIST, CRD and RKD compare samples with each other, so they are not."""
    for name in ("kd", "dkd", "ofa"):
        task = task_of(vit, mixer, build_method(name, {})).eval()
        whole = task(batch())
        halves = [{key: value[at] for key, value in batch().items()} for at in (slice(0, 2), slice(2, 4))]
        torch.testing.assert_close(sum(task(half) for half in halves) / 2, whole)


def test_bf16_keeps_weights_and_loss_in_fp32():
    task = task_of(resnet, vit, build_method("ofa", {"eps": 1.2}), build_method("crd", {}), bf16=True)
    exact = task_of(resnet, vit, build_method("ofa", {"eps": 1.2}), build_method("crd", {}))
    loss = task(batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in task.parameters()} == {torch.float32}
    assert loss.item() == pytest.approx(exact(batch()).item(), rel=5e-2)


def test_a_method_without_its_teacher_is_refused():
    with pytest.raises(ConfigError, match="objectives ofa need a teacher, and the config has none"):
        task_of(resnet, None, build_method("ofa", {}))


def test_a_teacher_without_stages_serves_logits_but_no_features():
    def shallow():
        return vit(depth=2)

    task_of(convnext, shallow, build_method("kd", {}))(batch()).backward()
    with pytest.raises(ConfigError, match="teacher: timm names 2 stages or blocks of it"):
        task_of(convnext, shallow, build_method("fitnet", {}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("off", {}, r"objectives\[1\]\.name is 'off'; allowed: .* Did you mean ofa\?"),
        ("ofa", {"esp": 1.0}, r"objectives\[1\]\.esp is not a field of ofa\. Did you mean eps\?"),
        ("ofa", {"form": "code"}, r"objectives\[1\]\.form is 'code'; allowed: 'paper' or 'released'"),
        ("ofa", {"eps": [1.0, 2.0]}, "has 2 values, expected one number, or 5"),
        ("cross_entropy", {"binary": 0.5}, r"objectives\[1\]\.binary is 0\.5; allowed: true or false"),
        ("kd", {"temperature": 0.0}, "temperature=0.0, expected a number > 0"),
        ("crd", {"dimensions": 0}, "dimensions=0, expected a whole number >= 1"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_method(name, options, at="objectives[1]")


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (["crd"], ["ofa"], "parameters are missing in it"),
        (["cross_entropy", "crd"], ["crd", "cross_entropy"], "parameters are missing in it, 4 unknown"),
        ([("crd", 8)], [("crd", 16)], "size mismatch for methods.0.project"),
    ],
)
def test_a_checkpoint_of_other_methods_is_refused(there, here, message):
    def made(names):
        options = [(name, {}) if isinstance(name, str) else (name[0], {"dimensions": name[1]}) for name in names]
        return task_of(vit, resnet, *(build_method(*method) for method in options))

    state = made(there).state_dict()
    made(there).load_state_dict(state)
    with pytest.raises(TrainingError, match=message):
        made(here).load_state_dict(state)


def test_a_batch_norm_of_one_value_says_what_to_do():
    task = task_of(resnet, None, build_method("cross_entropy", {})).train()
    one = {name: value[:1] for name, value in batch().items()}
    one["student_pixels"] = one["student_pixels"][:, :, :8, :8]
    with pytest.raises(TrainingError, match=r"one image a micro batch gives a batch norm nothing .*micro_batch_size"):
        task(one)
