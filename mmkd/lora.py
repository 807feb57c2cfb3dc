"""Low-rank adapters on the decoder (Hu et al., arXiv 2106.09685), by peft: added, switched off, merged away.

They live inside the decoder's own linear layers while a stage trains; what a stage exports is a plain model again.
Only adding them needs peft, which comes with the `train` extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmkd.bits import require_bitsandbytes, require_whole_blocks
from mmkd.config.schema import Config, LoraSection
from mmkd.decoders import text_config
from mmkd.errors import ConfigError
from mmkd.precision import on_cpu

NAME = "default"


def check_lora(config: Config) -> None:
    """Refuse 4-bit layers where they cannot be. Raises ConfigError."""
    for stage in config.stages:
        if stage.lora is None or stage.lora.quantize is None:
            continue
        require_bitsandbytes(f"stage {stage.name}: lora.quantize")
        if config.deepspeed.stage == 3:
            raise ConfigError(
                f"stage {stage.name}: lora.quantize keeps the decoder's layers whole on every rank, and "
                "deepspeed.stage 3 cuts weights up; use stage 2."
            )
        decoder, cpu = text_config(config.student.init), on_cpu(config.training.device)
        require_whole_blocks(decoder, cpu, f"stage {stage.name}: lora.quantize", "Leave it out.")


def add_adapters(decoder: nn.Module, lora: LoraSection) -> None:
    """Put adapters beside the linear layers of `decoder`, all but its head by default; they change nothing at first.

    Raises: ConfigError for targets that are not among its linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name.rpartition(".")[2] for name, m in decoder.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    wrong = [target for target in lora.targets if target not in linear] if lora.targets != "all-linear" else []
    if wrong:
        raise ConfigError(
            f"lora.targets {', '.join(wrong)}: this decoder's linear layers are {', '.join(sorted(linear))}; "
            "or write all-linear."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in decoder.modules()),  # GPT-2 keeps its weights transposed
    )
    inject_adapter_in_model(config, decoder, NAME)


def adapter_parameters(decoder: nn.Module) -> list[nn.Parameter]:
    """Parameters of the adapters in `decoder`; none where it has none."""
    return [p for _, layer in _layers(decoder) for side in (layer.lora_A, layer.lora_B) for p in side.parameters()]


@contextmanager
def adapters_off(decoder: nn.Module) -> Iterator[None]:
    """Let `decoder` answer as it did before it got adapters."""
    layers = [layer for _, layer in _layers(decoder)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def without_adapter(module: nn.Module) -> Any:
    """The layer that an adapter stands beside, or `module` itself where none does."""
    return module.base_layer if hasattr(module, "lora_A") else module


def merged(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights of `model`, its adapters added into the layers they stand beside: W + alpha/r * B A.

    Args:
        model: whose adapters; its own parameters are not read (under ZeRO-3 they are elsewhere).
        weights: as `model.state_dict()` names them.
    """
    weights = dict(weights)
    for name, layer in _layers(model):
        down, up = (weights.pop(f"{name}.lora_{side}.{NAME}.weight").float() for side in "AB")  # [r, in], [out, r]
        delta = layer.scaling[NAME] * (up @ down)  # [out, in]
        base = weights[f"{name}.base_layer.weight"]
        delta = delta.T if layer.fan_in_fan_out else delta
        weights[f"{name}.base_layer.weight"] = (base.float() + delta).to(base.dtype)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """peft's LoraLayers in `model`, by name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
