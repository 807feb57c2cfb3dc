"""The DeepSpeed configuration of a stage, with the defaults that bite switched off."""

from __future__ import annotations

import ctypes
import os
import platform
from datetime import timedelta
from typing import Any

from mmkd.config.schema import DeepspeedSection, StageSection, TrainingSection
from mmkd.errors import ConfigError
from mmkd.precision import on_cpu


def deepspeed_config(
    section: DeepspeedSection, stage: StageSection, training: TrainingSection, micro_batch_size: int, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's JSON for one training stage.

    Raises: ConfigError for ZeRO stage 0 with bf16, whose optimiser takes one step too many at its start.
    """
    bf16 = training.precision == "bf16"
    if bf16 and section.stage == 0:
        raise ConfigError(
            "deepspeed.stage 0 with training.precision bf16 starts Adam one step late and decays weights once extra; "
            "use deepspeed.stage 1 (the same memory on one rank) or precision fp32."
        )
    zero: dict[str, Any] = {"stage": section.stage, "stage3_gather_16bit_weights_on_model_save": True}
    if section.offload == "cpu":
        if section.stage == 0:
            raise ConfigError("deepspeed.offload cpu needs deepspeed.stage 1, 2 or 3.")
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": stage.gradient_clipping,  # DeepSpeed's own default is 1.0, not off
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
    }
    if bf16 and section.stage >= 2 and accumulation > 1:
        # By itself it adds up micro batches in bf16, which is off by 0.9 % after 64 of them. Under stage 1 the field
        # would switch to another optimiser, so there it is left.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, section.config)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in extra.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def prepare_launch(device: str) -> tuple[int, int]:
    """Rank and world size; a process started without a launcher becomes a world of one.

    Also sets torch's threads and current GPU, and keeps DeepSpeed from compiling its shared-memory operator at start,
    which training never uses.

    Args:
        device: `training.device`.

    Raises: ConfigError for a device that is not there.
    """
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    import torch

    if on_cpu(device):
        os.environ["DS_ACCELERATOR"] = "cpu"  # by itself DeepSpeed takes a GPU that is there
        # accelerate gives every rank all cores unless this is set.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"]))))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        keep_freed_memory()
    else:
        torch.set_num_threads(1)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # where objects are exchanged
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def patience() -> timedelta:
    """How long a rank waits for another one: two hours, or the minutes in DEEPSPEED_TIMEOUT.

    DeepSpeed's own ten minutes end ranks that wait while one merges and writes a model, or fits a codebook. The dead
    are noticed sooner (`Watch`).
    """
    return timedelta(minutes=int(os.environ.get("DEEPSPEED_TIMEOUT", "120")))


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one. By default it hands every large tensor back to the kernel and
    takes it again, and a CPU step spends a fifth of its time on page faults."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: up to here memory comes from the heap
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def make_safe(model: Any) -> None:
    """Make parameters fit for broadcasting: 0-dim ones get one dimension, transposed ones are laid out. Tied
    ones stay one."""
    for parameter in model.parameters():
        parameter.was_scalar = parameter.dim() == 0 or getattr(parameter, "was_scalar", False)
        if parameter.dim() == 0 or not parameter.is_contiguous():
            parameter.data = parameter.data.reshape(parameter.shape or (1,)).contiguous()


def as_saved(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of a model that `make_safe` has seen, in the shapes that a file has and a new model wants."""
    scalars = {name for name, parameter in model.named_parameters() if getattr(parameter, "was_scalar", False)}
    return {name: weight.reshape(()) if name in scalars else weight for name, weight in weights.items()}
