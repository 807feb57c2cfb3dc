"""A live teacher whose weights are cut up over the ranks: a ZeRO-3 engine of its own, which only reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Root(nn.Module):
    """What the engine wraps. ZeRO-3 counts its gathers from one call of the root to the next, so that all of a
    teacher's reading has to happen inside one."""

    def __init__(self, model: nn.Module, read: Callable[..., Any]):
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, *args: Any) -> Any:
        return self.read(self.model, *args)


def cut_up(
    model: nn.Module, read: Callable[..., Any], dtype: torch.dtype, device: torch.device, settings: dict[str, Any]
) -> Callable[..., Any]:
    """`read(model, ...)` as a function of the rest, over a model of which every rank keeps its share only.

    The process group has to be there; the student's engine has nothing to do with this one, whatever its ZeRO stage.
    Every rank must read equally often, for it gathers weights; so does a module of the model that is called afterwards.

    Args:
        model: whole, on the CPU; frozen. Changed in place.
        dtype: of its weights.
        device: of the shares, and of what is gathered.
        settings: of DeepSpeed's zero_optimization, of which those named stage3_param.. count here too.
    """
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": {"stage": 3} | {k: v for k, v in settings.items() if k.startswith("stage3_param")},
    }
    for parameter in model.parameters():  # neither a single number nor a transposed weight can be cut up
        parameter.data = parameter.data.reshape(parameter.shape or (1,)).contiguous()
    # Cut up one weight after the other: the engine would first move all of them to the device.
    deepspeed.zero.Init(module=model, config_dict_or_path=config, mem_efficient_linear=False, dtype=dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    engine, *_ = deepspeed.initialize(model=_Root(model, read), config=config)
    engine.eval()
    return engine


class WholeHead:
    """A head that reads its weights at once, for all the chunks of a step. To be made before the model is cut up."""

    def __init__(self, head: nn.Module):
        self.head = head
        self.shape = copy.deepcopy(head).to("meta")  # the same module, which no engine watches

    def gathered(self) -> Callable[[Tensor], Tensor]:
        """hidden [.., D] -> products [.., V], by weights that are whole for as long as this function is held. One
        collective, here; none when it is called."""
        import deepspeed

        parameters = dict(self.head.named_parameters())
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            whole = {name: parameter.data for name, parameter in parameters.items()}  # which outlives the parameter's
        return lambda hidden: functional_call(self.shape, whole, (hidden,))
