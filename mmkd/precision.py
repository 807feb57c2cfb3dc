"""What `training.device` and `training.precision: auto` mean on a machine."""

from __future__ import annotations

import platform

from mmkd.errors import ConfigError


def on_cpu(device: str) -> bool:
    """Whether `training.device` means the CPU here.

    Raises: ConfigError for cuda where there is none: on the CPU a run would take hundreds of times as long.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"training.device is cuda, and torch {torch.__version__} sees no CUDA device here (mmkd doctor says more). "
            "Mend the driver or CUDA_VISIBLE_DEVICES, or write auto or cpu."
        )
    return device == "cpu" or not torch.cuda.is_available()


def native_bf16(cpu: bool) -> bool:
    """Whether the device multiplies bf16 in hardware. A CPU without the instructions emulates it, some 30 times slower
    than fp32."""
    import torch

    if not cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() != "x86_64":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
