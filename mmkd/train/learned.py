"""A task whose checkpoints hold only what learns."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmkd.errors import TrainingError


class LearningTask(nn.Module):
    """Takes its state from a checkpoint in which frozen parameters are missing."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As usual, but for them. Raises TrainingError where the checkpoint is of a task that learns something else."""
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:  # of parameters of another shape
            raise TrainingError(f"the checkpoint is of another model: {str(error).splitlines()[-1].strip()}") from error
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        missing = [name for name in result.missing_keys if name not in frozen]
        # Scales of a frozen weight that is quantised go by its name and one more.
        unknown = [name for name in result.unexpected_keys if name.partition(".weight.")[0] + ".weight" not in frozen]
        if strict and (missing or unknown):
            raise TrainingError(
                f"the checkpoint is of another model: {len(missing)} parameters are missing in it, "
                f"{len(unknown)} unknown ({', '.join((missing + unknown)[:3])})."
            )
        return result
