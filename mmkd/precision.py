"""What `training.precision: auto` means on a machine."""

from __future__ import annotations

import platform


def native_bf16(on_cpu: bool) -> bool:
    """Whether the device multiplies bf16 in hardware. A CPU without the instructions emulates it, some 30 times slower
    than fp32."""
    import torch

    if not on_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() != "x86_64":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
