"""Where stages end, what they give, and the branches behind them, on small timm models of each family."""

import math

import pytest
import timm
import torch
from torch import nn

from mmkd.errors import ConfigError
from mmkd.vision_distill.branches import Merge, TokenBranch, build_branches
from mmkd.vision_distill.exits import Stage, classifier_name, find_exits, flat_places, read_staged
from mmkd.vision_distill.task import classes
from tests.vision_distill.tiny import CLASSES, FAMILIES, SIDE, convnext, images, mixer, mobilenet, resnet, swin, vit


def exits_of(model, side=SIDE):
    return find_exits(model, (side, side))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


def test_the_exits_are_the_published_ones():
    def ends(model):
        return [exit.end[0] for exit in exits_of(model)]

    assert ends(resnet()) == ["layer1", "layer2", "layer3", "global_pool"]  # what is pooled is layer4's output
    assert ends(convnext()) == ["stages.0", "stages.1", "stages.2", "head.global_pool"]
    # Blocks 2, 5, 12 counted through, and the map after the last 1x1 convolution.
    assert ends(mobilenet()) == ["blocks.1", "blocks.2", "blocks.4", "global_pool"]
    assert ends(swin()) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert ends(vit(depth=12)) == ["blocks.1", "blocks.3", "blocks.9", "blocks.11"]
    assert ends(mixer(num_blocks=12)) == ["blocks.1", "blocks.3", "blocks.9", "blocks.11"]


@pytest.mark.parametrize("blocks", range(4, 49))
def test_flat_models_of_any_depth_have_four_different_exits_and_the_last_block_is_one(blocks):
    places = flat_places(blocks)
    assert places == sorted(set(places))
    assert len(places) == 4
    assert places[0] >= 0
    assert places[-1] == blocks - 1
    assert all(abs((place + 1) / blocks - depth) <= 1 / 3 for place, depth in zip(places, (1 / 6, 1 / 3, 5 / 6, 1)))


def test_stages_have_the_shapes_that_their_exits_say(family):
    exits = exits_of(family)
    staged = read_staged(family, exits, images())
    for exit, stage in zip(exits, staged.stages, strict=True):
        assert stage.map.shape == (2, exit.channels, *exit.grid)
        assert stage.prefix.shape == (2, exit.prefix, exit.channels)
    assert staged.embedding.shape == (2, family.num_features)
    assert len(exits) == 4


def test_reading_stages_changes_neither_the_logits_nor_the_model(family):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in family.modules()]
    staged = read_staged(family, exits_of(family), images())
    assert torch.equal(staged.logits, family(images()))
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in family.modules()] == hooks
    head = family.get_submodule(classifier_name(family))
    torch.testing.assert_close(head(staged.embedding), staged.logits)


def test_finding_exits_leaves_training_mode_and_statistics_alone():
    model = resnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exits_of(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_patch_at_a_place_of_the_image_is_at_that_place_of_the_map():
    """A change in the upper right corner is felt there in the first stage, whatever the layout."""
    torch.manual_seed(0)
    for model in (resnet(), convnext(), swin(), vit(depth=4, global_pool="avg")):
        model.eval()
        exit = exits_of(model)[0]
        plain, changed = images(1), images(1)
        changed[..., :8, -8:] += 5.0
        maps = [read_staged(model, [exit], pixels).stages[0].map for pixels in (plain, changed)]
        change = (maps[1] - maps[0]).square().sum(1)[0]  # [rows, cols]
        row, col = divmod(int(change.argmax()), change.shape[1])
        assert row < change.shape[0] / 4
        assert col >= change.shape[1] * 3 / 4


def test_the_class_token_is_told_from_other_prefix_tokens():
    assert exits_of(vit())[0].class_token
    registers = exits_of(vit(class_token=False, reg_tokens=3, global_pool="avg"))[0]
    assert (registers.prefix, registers.class_token) == (3, False)
    assert not exits_of(mixer())[0].class_token


def test_branches_give_logits_and_reach_every_stage_of_the_student(family):
    torch.manual_seed(0)
    exits = exits_of(family)
    branches = build_branches(exits, teacher_width=48, classes=CLASSES)
    staged = read_staged(family, exits, images(4))
    for stage, branch in zip(staged.stages, branches, strict=True):
        logits = branch(stage)
        assert logits.shape == (4, CLASSES)
        (gradient,) = torch.autograd.grad(logits.square().sum(), stage.map, retain_graph=True)
        assert gradient.abs().sum() > 0
    sum(branch(stage).square().sum() for stage, branch in zip(staged.stages, branches, strict=True)).backward()
    unused = [name for name, p in branches.named_parameters() if p.grad is None]
    assert not unused  # every parameter of a branch learns: DeepSpeed waits for them all
    family.zero_grad()


def test_conv_branches_halve_once_for_each_stage_that_is_left_and_end_as_wide_as_the_wider_side():
    for teacher_width, widest in ((48, 48), (16, 32)):
        branches = build_branches(exits_of(resnet()), teacher_width, CLASSES)
        strides = [sum(m.stride == (2, 2) for m in b.modules() if isinstance(m, nn.Conv2d)) for b in branches]
        assert strides == [3, 2, 1, 0]
        assert [branch.head.in_features for branch in branches] == [widest] * 4


def test_token_branches_merge_to_seven_patches_a_side_and_have_fewer_blocks_the_deeper_they_are():
    branches = build_branches(exits_of(swin()), 48, CLASSES)  # grids of 32, 16, 8 and 4 patches a side
    assert [len(branch.merges) for branch in branches] == [2, 1, 0, 0]
    assert [len(branch.blocks) for branch in branches] == [3, 2, 1, 1]
    assert {branch.head.in_features for branch in branches} == {64}  # 8 * 2^3, the student's last width


def test_four_neighbours_are_merged_into_one():
    merge = Merge(1, 1)
    merge.norm, merge.act, merge.reduce = nn.Identity(), nn.Identity(), nn.Identity()
    patches = torch.arange(16.0).view(1, 4, 4, 1)
    assert merge(patches)[0, 0, 1].tolist() == [2.0, 3.0, 6.0, 7.0]
    assert merge(patches)[0, 1, 0].tolist() == [8.0, 9.0, 12.0, 13.0]


@pytest.mark.parametrize(("rows", "cols"), [(27, 27), (15, 29), (14, 9)])
def test_on_an_odd_grid_every_patch_counts(rows, cols):
    torch.manual_seed(0)
    exit = exits_of(vit())[0]
    exit = type(exit)(exit.end, exit.layout, 32, (rows, cols), exit.prefix, exit.class_token)
    branch = TokenBranch(exit, 32, CLASSES, blocks=1).double()
    maps = torch.randn(2, 32, rows, cols, dtype=torch.float64, requires_grad=True)
    logits = branch(Stage(maps, torch.randn(2, 1, 32, dtype=torch.float64)))
    (gradient,) = torch.autograd.grad(logits.square().sum(), maps)
    assert (gradient.abs().sum(1) > 0).all()
    assert len(branch.merges) == int(math.log2(min(rows, cols) / 7))


def test_a_vit_whose_patches_do_not_fill_the_image_is_read_as_it_sees_it():
    model = vit(img_size=58, patch_size=4, depth=4).eval()  # 14.5 patches a side, as SigLIP's 384 / 14 is 27.4
    exits = exits_of(model, 58)
    assert exits[0].grid == (14, 14)
    assert read_staged(model, exits, images(side=58)).stages[0].map.shape == (2, 32, 14, 14)


@pytest.mark.parametrize(
    ("model", "side", "message"),
    [
        (vit(depth=3), SIDE, "timm names 3 stages or blocks of it; staged exits need 4 or more"),
        (nn.Linear(3, 3), SIDE, "timm names 0 stages"),
        (vit(depth=4), 32, "cannot read images of 32x32 pixels .* set another image_size"),
    ],
)
def test_a_model_without_four_stages_or_for_other_images_is_refused(model, side, message):
    with pytest.raises(ConfigError, match=message):
        exits_of(model, side)


def test_a_model_whose_stage_is_no_single_map_is_refused_by_the_name_of_the_stage():
    model = resnet()
    model.layer2 = Fork(model.layer2)  # as HRNet's stages, which work on several scales
    model.layer3 = Join(model.layer3)
    with pytest.raises(ConfigError, match="layer2 gives no single feature map; staged exits need one at each stage"):
        exits_of(model)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hiera_tiny_224", {"embed_dim": 32, "num_heads": 1}, "an order or a layout of their own"),
        ("volo_d1_224", {}, "an order or a layout of their own"),
        ("mvitv2_tiny", {}, "timm names a stage .* of it, which is no module to read at"),
    ],
)
def test_a_model_whose_maps_are_not_where_they_seem_is_refused(name, options, message):
    model = timm.create_model(name, num_classes=CLASSES, **options)
    with pytest.raises(ConfigError, match=message):
        find_exits(model, (224, 224))


def test_a_classifier_that_is_not_one_layer_is_refused_by_name():
    with pytest.raises(ConfigError, match="the classifier of RepVit is a RepVitClassifier, not one linear layer"):
        classes(timm.create_model("repvit_m0_9", num_classes=CLASSES))


class Fork(nn.Sequential):
    def forward(self, maps):
        return [super().forward(maps)]


class Join(nn.Sequential):
    def forward(self, maps):
        return super().forward(maps[0])


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"])
def test_published_models_have_the_published_exits(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=CLASSES)
    exits = find_exits(model, (224, 224))
    grids = {"deit_tiny_distilled_patch16_224": [14] * 4, "swin_tiny_patch4_window7_224": [56, 28, 14, 7]}
    assert [exit.grid[0] for exit in exits] == grids[name]
    assert exits[-1].channels == model.num_features
