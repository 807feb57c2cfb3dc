"""4-bit weights by bitsandbytes: a student's frozen layers under its adapters, and what holds for a teacher's too."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.decoders import input_widths
from mmkd.errors import ConfigError
from mmkd.models.hidden_capture import decoder_layers

BLOCK = 64  # weights that share a scale


def require_bitsandbytes(option: str) -> None:
    """Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{option} needs bitsandbytes: pip install 'mmkd[quant]'.")


def require_whole_blocks(config: Any, on_cpu: bool, option: str, remedy: str) -> None:
    """As `make_safe_4bit` refuses, before any weight is loaded, as far as the decoder's config tells.

    Args:
        config: of the decoder; None where it cannot be read yet.
    """
    for name, width in input_widths(config).items() if on_cpu and config is not None else ():
        if width % BLOCK:
            raise ConfigError(
                f"{option}: the decoder's {name} is {width}, and on a CPU bitsandbytes reads 4-bit weights rightly "
                f"only where that is a multiple of {BLOCK}. {remedy}"
            )


def quiet_bitsandbytes() -> None:
    """Switch off notices of a missing kernel and of casts, a line a layer."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)


def make_safe_4bit(model: nn.Module, device: torch.device, option: str, remedy: str) -> None:
    """Guard a model's 4-bit layers against what bitsandbytes (0.50) does to them on a CPU, with no word.

    Raises: ConfigError on a CPU where a layer's width is no multiple of 64: its weights would be restored wrongly.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            if device.type == "cpu" and module.in_features % BLOCK:
                raise ConfigError(
                    f"{option}: {name} is {module.in_features} wide, and on a CPU bitsandbytes reads 4-bit weights "
                    f"rightly only where that is a multiple of {BLOCK}. {remedy}"
                )
            # Some CPUs would repack the weight at the first forward, and saving it then gives another weight.
            module.support_avx512bf16_for_cpu = False


def quantize_layers(language_model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Put the linear layers of a decoder into NF4, its scales quantised too; head and embeddings stay (QLoRA, Dettmers
    et al. 2023, arXiv 2305.14314).

    Args:
        language_model: changed in place; its layers move to `device`.
        dtype: that they compute in.

    Raises: ConfigError for a decoder without such layers, or one that `make_safe_4bit` refuses.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    quiet_bitsandbytes()
    layers = decoder_layers(language_model.get_decoder())
    linears = [(name, module) for name, module in layers.named_modules() if type(module) is nn.Linear]
    if not linears:
        raise ConfigError(f"lora.quantize: the layers of {type(language_model).__name__} have no nn.Linear.")
    for name, plain in linears:
        with torch.device("meta"):
            made = Linear4bit(plain.in_features, plain.out_features, plain.bias is not None, dtype, quant_type="nf4")
        made.weight = Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4", module=made)
        made.bias = plain.bias
        layers.set_submodule(name, made.to(device))
    make_safe_4bit(language_model, device, "lora.quantize", "Leave it out.")


def restored(model: nn.Module, weights: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, as `model.state_dict()` names them, with the 4-bit ones as they were before.

    Args:
        original: by the names that the weights had before adapters were added.
    """
    from bitsandbytes.nn import Linear4bit

    weights = dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            for key in [key for key in weights if key.startswith(f"{name}.")]:  # packed weights and their scales
                del weights[key]
            for part in ("weight", "bias"):
                if (before := original.get(f"{name.removesuffix('.base_layer')}.{part}")) is not None:
                    weights[f"{name}.{part}"] = before
    return weights
