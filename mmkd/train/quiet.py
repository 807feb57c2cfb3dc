"""Keeps the terminal to what a user reads: other libraries' notices that call for nothing are switched off singly."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Call before deepspeed is imported."""
    # DeepSpeed calls collectives by names that torch renamed: one line for each step and rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Found hostfile, chosen accelerator, timers and the like, at level INFO and WARNING.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # That DeepSpeed's accumulation is used and not accelerate's own, which mmkd does not set.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
