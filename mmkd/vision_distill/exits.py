"""Four staged exits of any timm model: where its stages end, and what their features look like.

Stages are read while the model runs as a whole, by hooks that live for one forward: nothing of timm is patched, and
ZeRO-3 gathers each module's parameters around its own call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmkd.errors import ConfigError

End = tuple[str, Literal["output", "input"]]
Layout = Literal["NCHW", "NHWC", "tokens"]

STAGES = 4
# Where plain ViTs and MLPs are read, as Swin-T's stages end: after 2, 4, 10 and 12 of its 12 blocks.
DEPTHS = (2 / 12, 4 / 12, 10 / 12, 1.0)


@dataclass(frozen=True)
class Exit:
    """Where a stage ends.

    Attributes:
        end: name of a module of the model, and whether its output or its input is read.
        layout: of the features: maps [B, C, rows, cols] or [B, rows, cols, C], or tokens [B, prefix + rows * cols, C].
        channels: C; grid: (rows, cols); prefix: class and other tokens before the patches.
        class_token: whether the first of those is one that the classifier reads.
    """

    end: End
    layout: Layout
    channels: int
    grid: tuple[int, int]
    prefix: int = 0
    class_token: bool = False


@dataclass
class Stage:
    """Features of a stage in one layout for all families: map [B, C, rows, cols] and prefix tokens [B, P, C]."""

    map: Tensor
    prefix: Tensor


@dataclass
class Staged:
    """What one pass of a model gives: logits [B, K], the classifier's input [B, D], and its four stages."""

    logits: Tensor
    embedding: Tensor
    stages: list[Stage]


def find_exits(model: Any, image_size: tuple[int, int], name: str = "model") -> list[Exit]:
    """The four exits of a timm classifier, shallow to deep. Runs it, and holds them against timm's own reading.

    Hierarchical models (ResNet, ConvNeXt, MobileNet, Swin ..) are read where their last four stages end; of those with
    NCHW maps, the last exit is the map that is pooled for the classifier (MobileNetV2's lies after a 1x1 convolution).
    Flat models (ViT, MLP-Mixer, ResMLP ..) are read after 2/12, 4/12, 10/12 and all of their blocks.

    Args:
        image_size: (height, width) of the images that the model will see; name: for messages.

    Raises: ConfigError for a model that has no four stages, whose features are neither a map nor a grid of tokens, or
        whose places are not where they seem.
    """
    info = getattr(model, "feature_info", None) or []
    info = getattr(info, "info", info)
    if len(info) < STAGES:
        raise ConfigError(f"{name}: timm names {len(info)} stages or blocks of it; staged exits need {STAGES} or more.")
    flat = len({entry["reduction"] for entry in info}) == 1
    entries = [info[at] for at in flat_places(len(info))] if flat else info[-STAGES:]
    ends: list[End] = [(entry["module"], "output") for entry in entries]
    modules = dict(model.named_modules())
    for entry in entries:
        if entry["module"] not in modules:
            raise ConfigError(f"{name}: timm names a stage {entry['module']} of it, which is no module to read at.")
    pools: list[End] = [(module, "input") for module in modules if module.endswith("global_pool")]
    found = _dry_run(model, [*ends, *pools], image_size, name)
    for end in ends:
        if not isinstance(found.get(end), Tensor) or found[end].dim() not in (3, 4):
            raise ConfigError(f"{name}: {end[0]} gives no single feature map; staged exits need one at each stage.")
    if len(pools) == 1 and _layout(model, found[ends[-1]]) == "NCHW":
        ends[-1] = pools[0]
    exits = [
        _exit(model, end, found[end], [side // entry["reduction"] for side in image_size], name)
        for end, entry in zip(ends, entries, strict=True)
    ]
    _require_timms_maps(model, exits, image_size, name)
    return exits


def _require_timms_maps(model: Any, exits: list[Exit], image_size: tuple[int, int], name: str) -> None:
    """Refuse a model whose blocks give features in an order of their own (Hiera), or in another layout than it says
    (SAM's ViT, VOLO): timm's own reading of them has to have the same map.

    Raises: ConfigError.
    """
    like = next(model.parameters())
    if like.is_meta or not hasattr(model, "forward_intermediates"):
        return
    image = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(like)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            timms = model.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
            ours = read_staged(model, exits, image).stages
    finally:
        model.train(training)
    for exit, stage in zip(exits, ours, strict=True):
        close = 1e-3 * stage.map.abs().max()
        same = [one for one in timms if one.shape == stage.map.shape and (one - stage.map).abs().max() <= close]
        if exit.end[1] == "output" and not same:
            raise ConfigError(
                f"{name}: {exit.end[0]} of a {type(model).__name__} gives {tuple(stage.map.shape[1:])}, and timm's own "
                "reading has no such map: its places are in an order or a layout of their own. Take another family."
            )


def flat_places(blocks: int) -> list[int]:
    """Indices of the blocks of a flat model after which it is read; all different. Needs four blocks."""
    done = [max(1, round(blocks * depth)) for depth in DEPTHS]
    for stage in range(1, STAGES):
        done[stage] = max(done[stage], done[stage - 1] + 1)
    over = [min(count, blocks - (STAGES - 1 - stage)) for stage, count in enumerate(done)]
    return [count - 1 for count in over]


def read_staged(model: Any, exits: list[Exit], pixels: Tensor) -> Staged:
    """Run a classifier on pixels [B, 3, H, W] and read its exits on the way."""
    embedding: End = (classifier_name(model), "input")
    with captured(model, [*(exit.end for exit in exits), embedding]) as found:
        logits = model(pixels)
    return Staged(logits, found[embedding].flatten(1), [_stage(found[exit.end], exit) for exit in exits])


def classifier_name(model: Any) -> str:
    """Name of the layer that makes the logits (the first, where timm has several)."""
    head = model.get_classifier()
    head = head[0] if isinstance(head, (tuple, list)) else head
    return next(name for name, module in model.named_modules() if module is head)


@contextmanager
def captured(model: nn.Module, ends: list[End]) -> Iterator[dict[End, Any]]:
    """Collect what goes into or comes out of modules during one forward. The hooks live no longer."""
    found: dict[End, Any] = {}
    handles = []
    for name, side in ends:
        module, key = model.get_submodule(name), (name, side)
        if side == "output":
            hook = module.register_forward_hook(lambda _module, _args, out, key=key: found.__setitem__(key, out))
        else:
            hook = module.register_forward_pre_hook(lambda _module, args, key=key: found.__setitem__(key, args[0]))
        handles.append(hook)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _dry_run(model: nn.Module, ends: list[End], image_size: tuple[int, int], name: str) -> dict[End, Any]:
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *image_size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), captured(model, ends) as found:
            model(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{name} cannot read images of {image_size[0]}x{image_size[1]} pixels ({reason}); set another image_size."
        ) from error
    finally:
        model.train(training)
    return found


def _layout(model: Any, features: Tensor) -> Layout:
    if features.dim() == 3:
        return "tokens"
    return "NHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "NCHW"


def _exit(model: Any, end: End, features: Tensor, patches: list[int], name: str) -> Exit:
    layout = _layout(model, features)
    if layout == "NCHW":
        return Exit(end, layout, features.shape[1], (features.shape[2], features.shape[3]))
    if layout == "NHWC":
        return Exit(end, layout, features.shape[3], (features.shape[1], features.shape[2]))
    prefix = getattr(model, "num_prefix_tokens", 0)
    rows, cols = patches
    if features.shape[1] != prefix + rows * cols:
        raise ConfigError(
            f"{name}: {end[0]} gives {features.shape[1]} tokens, expected {prefix} + {rows} x {cols} patches."
        )
    has_class = prefix > 0 and getattr(model, "cls_token", None) is not None
    return Exit(end, layout, features.shape[2], (rows, cols), prefix, has_class)


def _stage(features: Tensor, exit: Exit) -> Stage:
    if exit.layout == "tokens":
        patches = features[:, exit.prefix :].transpose(1, 2).unflatten(2, exit.grid)  # [B, C, rows, cols]
        return Stage(patches, features[:, : exit.prefix])
    maps = features if exit.layout == "NCHW" else features.movedim(3, 1)
    return Stage(maps, maps.new_zeros(len(maps), 0, exit.channels))
