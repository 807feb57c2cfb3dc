"""The branches of OFA-KD: from the features of a student's stage to class logits (Hao et al. 2023, section 3.2; shapes
as in the released program). They exist in training only."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mmkd.vision_distill.exits import STAGES, Exit, Stage

TARGET_GRID = 7  # about how many patches a side a branch of tokens works on
HEADS = 4


def build_branches(exits: list[Exit], teacher_width: int, classes: int) -> nn.ModuleList:
    """A branch for each exit: convolutions behind NCHW maps, transformer blocks behind the rest.

    Args:
        exits: of the student, shallow to deep; teacher_width: of the teacher's last features; classes: K.
    """
    student_width = exits[-1].channels
    widest = max(student_width, teacher_width)
    branches = nn.ModuleList()
    for place, exit in enumerate(exits, start=1):
        left = STAGES - place
        if exit.layout == "NCHW":
            branches.append(ConvBranch(exit.channels, widest, classes, left))
        else:
            branches.append(TokenBranch(exit, student_width, classes, blocks=max(left, 1)))
    return branches


class ConvBranch(nn.Module):
    """Stage [B, C, rows, cols] -> logits [B, K].

    Args:
        width: of the features that are pooled for the logits.
        halvings: stride-2 blocks, each doubling the width, the last one making `width`; 0 is a 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, classes: int, halvings: int):
        super().__init__()
        widths = [channels * 2**i for i in range(halvings)] + [width]
        layers = [separable(a, b) for a, b in pairwise(widths)]
        self.body = nn.Sequential(*(layers or [nn.Conv2d(channels, width, 1)]))
        self.head = nn.Linear(width, classes)
        self.apply(initialize)

    def forward(self, stage: Stage) -> Tensor:
        return self.head(self.body(stage.map).mean((2, 3)))


def separable(channels: int, width: int) -> nn.Sequential:
    """Two depthwise separable convolutions, the first with stride 2: [B, channels, 2r, 2c] -> [B, width, r, c]."""

    def half(made: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.Conv2d(channels, made, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        ]

    return nn.Sequential(*half(channels, 2), *half(width, 1))


class TokenBranch(nn.Module):
    """Stage with patches and prefix tokens -> logits [B, K].

    Patches are merged 2x2 until about 7 a side are left, then transformer blocks follow, then the class token (the
    mean of the patches, where there is none) is classified.

    Args:
        width: of the blocks; heads are 4, or as many as divide it.
    """

    def __init__(self, exit: Exit, width: int, classes: int, blocks: int):
        super().__init__()
        self.class_token = exit.class_token
        merges = max(0, int(math.log2(min(exit.grid) / TARGET_GRID)))
        self.merges = nn.ModuleList(Merge(exit.channels if i == 0 else width, width) for i in range(merges))
        # Small images need no merging, but may need the width.
        self.widen = nn.Identity() if merges or exit.channels == width else nn.Linear(exit.channels, width)
        self.blocks = nn.Sequential(*(Block(width, math.gcd(HEADS, width), qkv_bias=True) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)
        self.apply(initialize)

    def forward(self, stage: Stage) -> Tensor:
        patches = stage.map.movedim(1, 3)  # [B, rows, cols, C]
        for merge in self.merges:
            patches = merge(patches)
        patches = self.widen(patches).flatten(1, 2)  # [B, rows * cols, width]
        # Models with prefix tokens are as wide in every block, so that only those without need another width here.
        tokens = torch.cat([stage.prefix, patches], 1) if stage.prefix.shape[1] else patches
        tokens = self.blocks(tokens)
        pooled = tokens[:, 0] if self.class_token else tokens[:, stage.prefix.shape[1] :].mean(1)
        return self.head(pooled)


class Merge(nn.Module):
    """[B, rows, cols, C] -> [B, rows // 2, cols // 2, width]: each 2x2 square of patches becomes one.

    An odd side is first averaged down to the even one below it, so that every patch counts and none is made up.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, width)
        self.act = nn.GELU()

    def forward(self, patches: Tensor) -> Tensor:
        rows, cols = patches.shape[1] // 2, patches.shape[2] // 2
        if patches.shape[1] % 2 or patches.shape[2] % 2:
            patches = adaptive_avg_pool2d(patches.movedim(3, 1), (2 * rows, 2 * cols)).movedim(1, 3)
        squares = patches.unflatten(2, (cols, 2)).unflatten(1, (rows, 2))  # [B, rows, 2, cols, 2, C]
        return self.act(self.reduce(self.norm(squares.transpose(2, 3).flatten(3))))


def initialize(module: nn.Module) -> None:
    """As published: convolutions Kaiming (fan out), linear layers normal of deviation 0.02, norms 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)
