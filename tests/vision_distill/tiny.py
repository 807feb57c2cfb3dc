"""Small timm models of each family, random weights, images of 64 pixels unless told."""

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer, ResBlock
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

CLASSES = 5
SIDE = 64


def vit(**options):
    options = {"patch_size": 4, "embed_dim": 32, "depth": 6, "num_heads": 2, "img_size": SIDE} | options
    return VisionTransformer(num_classes=CLASSES, **options)


def mixer(**options):
    options = {"patch_size": 4, "embed_dim": 32, "num_blocks": 4, "img_size": SIDE} | options
    return MlpMixer(num_classes=CLASSES, **options)


def resmlp():
    return mixer(block_layer=ResBlock, mlp_ratio=4, norm_layer=torch.nn.LayerNorm)


def swin():
    return SwinTransformer(
        img_size=SIDE, patch_size=2, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=4,
        num_classes=CLASSES,
    )  # fmt: skip


def convnext():
    return ConvNeXt(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=CLASSES)


def resnet():
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 16, 24, 32), num_classes=CLASSES)


def mobilenet():
    return timm.create_model("mobilenetv2_035", num_classes=CLASSES)


FAMILIES = {f.__name__: f for f in (resnet, mobilenet, convnext, vit, mixer, resmlp, swin)}


def images(count=2, side=SIDE, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
