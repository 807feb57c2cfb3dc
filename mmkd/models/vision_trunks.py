"""How each library's vision model is built, cut down to what is read, and read.

A trunk holds the library's module as `model` and runs it by calling it, never by one of its inner methods: ZeRO-3
gathers the parameters that a module owns (class token, position embedding) only around that module's own call. timm and
open_clip are imported by their builders alone, so that a released CLIP tower needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from .configuration_vision import MmkdVisionConfig

# transformers model_type -> (the layers, the norm after them, tokens before the patches, positions resized on request)
TRANSFORMERS_FAMILIES = {
    "clip_vision_model": ("encoder.layers", "post_layernorm", 1, True),
    "siglip_vision_model": ("encoder.layers", "post_layernorm", 0, True),
    "dinov2": ("encoder.layer", "layernorm", 1, False),  # always resizes
}
# Arguments of an architecture_config by which a library fetches weights or code, or reads them from anywhere on disk.
FETCHING = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",  # timm
    "attn_implementation", "_attn_implementation",  # transformers: a repository of kernels
)  # fmt: skip
# Modules of timm whose models are plain ViTs; the others are read as stages.
TIMM_VITS = ("vision_transformer", "eva")


def build_model(config: MmkdVisionConfig, **loading: Any) -> nn.Module:
    """The library's own module of `config`: random weights and no network, unless `loading` (timm only) says otherwise.

    Raises ValueError for a library or model that is not supported, or a config that says where to fetch anything.
    """
    details = dict(config.architecture_config or {})
    _refuse_fetching(config, details)
    if config.library == "timm":
        return _timm_model(config, details, loading)
    if config.library == "open_clip":
        return _open_clip_model(details)
    if config.library == "transformers":
        if config.architecture not in TRANSFORMERS_FAMILIES:
            known = ", ".join(TRANSFORMERS_FAMILIES)
            raise ValueError(
                f"no vision tower of model_type {config.architecture!r} in transformers here; use {known}."
            )
        details.pop("model_type", None)
        return AutoModel.from_config(AutoConfig.for_model(config.architecture, **details))
    raise ValueError(f"vision library {config.library!r} is not one of timm, open_clip, transformers.")


def _refuse_fetching(config: MmkdVisionConfig, details: dict[str, Any]) -> None:
    """Weights lie beside config.json, which may be anyone's: loading it must not reach for others."""
    named = [name for name in FETCHING if name in details]
    if config.library == "timm" and ":" in config.architecture:  # hf-hub:NAME, local-dir:FOLDER
        named.append(f"architecture {config.architecture}")
    if config.library == "open_clip" and (details.get("vision_cfg") or {}).get("timm_model_name"):
        named.append("vision_cfg.timm_model_name")
    if named:
        raise ValueError(
            f"vision_config says where to fetch weights or code ({', '.join(named)}), which none saved by mmkd does. "
            "Nothing was fetched. Remove it from config.json, or do not trust this folder."
        )


def build_trunk(config: MmkdVisionConfig, model: nn.Module) -> nn.Module:
    """Wrap `model` (see `build_model`) in its trunk, which drops from it what the taps do not need."""
    if config.library == "transformers":
        return TransformersViT(config, model)
    if config.library == "timm":
        return TimmViT(config, model) if is_timm_vit(config.architecture) else TimmStages(config, model)
    resnet = import_module("open_clip.modified_resnet").ModifiedResNet
    return OpenClipResNet(config, model) if isinstance(model, resnet) else OpenClipViT(config, model)


def is_timm_vit(architecture: str) -> bool:
    """Whether timm's model of that name is a plain ViT, read by layers rather than by stages."""
    return import_module("timm.models").is_model_in_modules(architecture, TIMM_VITS)


def _timm_model(config: MmkdVisionConfig, details: dict[str, Any], loading: dict[str, Any]) -> nn.Module:
    create = import_module("timm").create_model
    if is_timm_vit(config.architecture):
        return create(config.architecture, **details, **loading)
    with torch.device("meta"):  # only to learn how many stages there are
        stages = len(create(config.architecture, features_only=True, **details).feature_info.info)
    taps = resolve_taps(config.taps or [-1], first=0, last=stages - 1, name=config.architecture)
    return create(config.architecture, features_only=True, out_indices=taps, **details, **loading)


def _open_clip_model(details: dict[str, Any]) -> nn.Module:
    # open_clip builds a vision tower only beside a text tower: take the smallest, and leave it.
    text = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    return import_module("open_clip").CLIP(text_cfg=text, **details).visual


def resolve_taps(taps: list[int], first: int, last: int, name: str) -> list[int]:
    """Taps counted from the start, shallow to deep. ValueError names the taps there are."""
    found = sorted(tap if tap >= 0 else last + 1 + tap for tap in taps)
    if not found or found[0] < first or found[-1] > last or len(set(found)) < len(found):
        raise ValueError(
            f"taps {list(taps)} do not fit {name}: give different numbers from {first} to {last}, "
            f"or from {first - last - 1} to -1 counted from the end."
        )
    return found


@contextmanager
def recorded(modules: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of `modules` during one forward. The hooks live no longer, so copies and saves see none."""
    outputs: dict[int, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _module, _args, output, key=key: outputs.__setitem__(key, output))
        for key, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class ViT(nn.Module):
    """A plain ViT. Reads hidden states as LLaVA does: without the tokens before the patches, without a final norm.

    The deepest tap is what the cut model returns; only shallower ones need recording.
    """

    def __init__(self, config: MmkdVisionConfig, model: nn.Module, blocks: str, prefix: int, patch: Any, width: int):
        super().__init__()
        layers = model.get_submodule(blocks)
        self.taps = resolve_taps(config.taps or [-2], first=1, last=len(layers), name=config.architecture)
        parent, _, name = blocks.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[: self.taps[-1]])
        self.model, self.blocks, self.prefix = model, blocks, prefix
        self.patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        self.names = [f"layer{tap}" for tap in self.taps]
        self.channels = [width] * len(self.taps)

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, prefix + patches, C] after the last layer kept."""
        return self.model(pixel_values)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, cols = height // self.patch[0], width // self.patch[1]
        if not (rows and cols):
            raise ValueError(f"an image of {height}x{width} is smaller than one patch of {self.patch[0]} pixels.")
        return rows, cols

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        rows, cols = self.grid(*pixel_values.shape[-2:])
        layers = self.model.get_submodule(self.blocks)
        with recorded({tap: layers[tap - 1] for tap in self.taps[:-1]}) as states:
            states[self.taps[-1]] = self.tokens(pixel_values)
        # [B, prefix + rows*cols, C] -> [B, C, rows, cols], all views
        return [states[tap][:, self.prefix :].transpose(1, 2).unflatten(2, (rows, cols)) for tap in self.taps]


class TimmViT(ViT):
    """timm's VisionTransformer or Eva."""

    def __init__(self, config: MmkdVisionConfig, model: Any):
        super().__init__(
            config, model, "blocks", model.num_prefix_tokens, model.patch_embed.patch_size, model.embed_dim
        )
        model.prune_intermediate_layers([self.taps[-1] - 1], prune_norm=True)  # norms and head; the blocks are cut
        self.image_size = tuple(model.patch_embed.img_size)
        self.dynamic = bool((config.architecture_config or {}).get("dynamic_img_size"))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if self.dynamic and (height % self.patch[0] or width % self.patch[1]):
            raise ValueError(f"an image of {height}x{width} is not a whole number of {self.patch[0]}-pixel patches.")
        if not self.dynamic:
            require_size(self.image_size, height, width)
        return super().grid(height, width)


class OpenClipViT(ViT):
    """open_clip's VisionTransformer; its positions hold for one image size."""

    def __init__(self, config: MmkdVisionConfig, model: Any):
        super().__init__(
            config, model, "transformer.resblocks", 1, model.patch_size, model.positional_embedding.shape[-1]
        )
        # Without pooling, projection and final norm the model returns its tokens. Patch dropout would break the grid.
        model.attn_pool, model.proj, model.pool_type = None, None, "none"
        model.output_tokens = False
        model.ln_post = nn.Identity()
        model.patch_dropout = nn.Identity()
        self.image_size = tuple(model.image_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        require_size(self.image_size, height, width)
        return super().grid(height, width)


class TransformersViT(ViT):
    """CLIP, SigLIP or DINOv2 of transformers; positions are resized for other image sizes."""

    def __init__(self, config: MmkdVisionConfig, model: Any):
        blocks, norm, prefix, on_request = TRANSFORMERS_FAMILIES[config.architecture]
        super().__init__(config, model, blocks, prefix, model.config.patch_size, model.config.hidden_size)
        setattr(model, norm, nn.Identity())
        # No patch token depends on these.
        if config.architecture == "siglip_vision_model":
            model.head, model.use_head = None, False
        if config.architecture == "dinov2":
            model.embeddings.mask_token = None
        self.options = {"interpolate_pos_encoding": True} if on_request else {}

    def tokens(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values, **self.options).last_hidden_state


class TimmStages(nn.Module):
    """The stages of a timm CNN or hierarchical transformer."""

    def __init__(self, config: MmkdVisionConfig, model: Any):
        super().__init__()
        info = model.feature_info
        getter = import_module("timm.models._features").FeatureGetterNet
        if isinstance(model, getter):  # it calls an inner method of the model, see above
            raise ValueError(f"timm's {config.architecture} is neither a plain ViT nor a model read by stages.")
        efficientnet = import_module("timm.models.efficientnet").EfficientNetFeatures
        mobilenet = import_module("timm.models.mobilenetv3").MobileNetV3Features
        if isinstance(model, (efficientnet, mobilenet)):  # these keep, and run, the blocks after the deepest tap
            deepest = info.module_name()[-1]  # "blocks.3", or "bn1" for the stem
            model.blocks = model.blocks[: int(deepest.removeprefix("blocks.")) + 1 if "blocks." in deepest else 0]
        self.config, self.model = config, model
        self.channels_at = 3 if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else 1
        self.names = [f"stage{index}" for index in info.out_indices]
        self.channels = info.channels()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        # Rounding differs between families (SAME, symmetric or no padding), so ask the model: a copy without data.
        with torch.device("meta"):
            maps = TimmStages(self.config, build_model(self.config)).eval()(torch.empty(1, 3, height, width))
        return tuple(maps[-1].shape[-2:])

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        # Depthwise convolutions on CPU are about ten times faster in this layout. The weights keep theirs: DeepSpeed
        # takes contiguous parameters only.
        maps = self.model(pixel_values.contiguous(memory_format=torch.channels_last))
        return [m if self.channels_at == 1 else m.movedim(3, 1) for m in maps]  # [B, C_s, rows_s, cols_s]


class OpenClipResNet(nn.Module):
    """CLIP's own ResNet in open_clip: stage 0 is the stem, stages 1-4 the layers."""

    def __init__(self, config: MmkdVisionConfig, model: Any):
        super().__init__()
        self.taps = resolve_taps(config.taps or [-1], first=0, last=4, name=config.architecture)
        width = model.conv3.out_channels
        self.channels = [width if tap == 0 else width * 4 * 2 ** (tap - 1) for tap in self.taps]
        self.names = [f"stage{tap}" for tap in self.taps]
        model.attnpool = nn.Identity()
        for stage in range(self.taps[-1] + 1, 5):
            setattr(model, f"layer{stage}", nn.Identity())
        self.model = model

    def grid(self, height: int, width: int) -> tuple[int, int]:
        side = [math.ceil(n / 2) // 2 for n in (height, width)]  # padded convolution, then pooling without
        for _ in range(1, self.taps[-1]):
            side = [n // 2 for n in side]
        return side[0], side[1]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        stages = {0: self.model.avgpool} | {n: getattr(self.model, f"layer{n}") for n in range(1, 5)}
        with recorded({tap: stages[tap] for tap in self.taps[:-1]}) as maps:
            maps[self.taps[-1]] = self.model(pixel_values.contiguous(memory_format=torch.channels_last))
        return [maps[tap] for tap in self.taps]


def require_size(size: tuple[int, ...], height: int, width: int) -> None:
    """ValueError unless height x width is the one size that the model takes."""
    if (height, width) != size:
        raise ValueError(f"this model takes images of {size[0]}x{size[1]} only, not {height}x{width}.")
