"""Keeps the terminal to what a user reads: other libraries' notices that call for nothing are switched off singly."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Call once, before training."""
    # DeepSpeed calls collectives by names that torch renamed: one line for each step and rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # That DeepSpeed's accumulation is used and not accelerate's own, which mmkd does not set.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers.modeling_utils").addFilter(_calls_for_something)


def _calls_for_something(record: logging.LogRecord) -> bool:
    # The vision tower is no transformers model and has no attention implementation to set.
    return "without finding the associated sub-model" not in record.getMessage()
