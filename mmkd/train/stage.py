"""One stage of a run: compose, train, export."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from mmkd.checkpoints import latest_complete
from mmkd.config.schema import Config, StageSection, StudentSection
from mmkd.errors import TrainingError
from mmkd.precision import on_cpu
from mmkd.train.deepspeed import deepspeed_config, make_safe
from mmkd.train.export import export


def train_stage(
    config: Config,
    stage: StageSection,
    plan: tuple[int, int],
    run: Path,
    start: Path | None,
    target: Path,
    rank: int,
    world: int,
    resume: bool,
) -> None:
    """Train one stage from the model in `start` (the student section's own where None) and export it to `target`."""
    import torch
    import torch.distributed as dist
    from rich.console import Console
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from mmkd.bits import quantize_layers
    from mmkd.compose import compose, parameter_table, parts
    from mmkd.data.loader import build_loader
    from mmkd.lora import add_adapters
    from mmkd.models.attention_capture import capture_name
    from mmkd.objectives import build
    from mmkd.teachers.cached import CachedTeacher, require_same_text
    from mmkd.teachers.live import build_teacher
    from mmkd.teachers.tokenizers import teacher_side, vocabulary_size
    from mmkd.train.callbacks import MetricsFile, Progress
    from mmkd.train.features import cached_features, measure_channels
    from mmkd.train.on_policy import stop_ids
    from mmkd.train.task import DistillTask
    from mmkd.train.trainer import DistillTrainer

    micro, accumulation = plan
    cpu = on_cpu(config.training.device)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    device = torch.device("cpu") if cpu else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(config.run.seed)
    # Everything is loaded before TrainingArguments exist: with ZeRO-3 they would partition what is loaded after them,
    # as those of the stage before would do here.
    unset_hf_deepspeed_config()
    section = config.student
    if start is not None:
        section = section.model_copy(
            update={"init": str(start), "vision": None, "language": None, "keep_layers": None, "template": "default"}
        )
    composed = compose(section, dtype)
    original = None
    student = composed.model
    sections = stage.objectives or config.objectives
    objectives = [(build(s), s.weight) for s in sections]
    tokenizer = composed.processor.tokenizer
    side = teacher_side(config.teacher, composed.processor, [objective for objective, _ in objectives])
    require_same_text(config.teacher, composed.processor)
    zero_settings = config.deepspeed.config.get("zero_optimization")
    asked = config.teacher if any(objective.asks_teacher for objective, _ in objectives) else None
    teacher = build_teacher(asked, dtype, config.student.attention, device, zero_settings)
    shared_ids = side.shared_ids() if side is not None and side.own_tokens else None
    task = DistillTask(student, objectives, teacher, vocabulary_size(tokenizer), shared_ids)
    if task.needs.student_attention:
        student.set_attn_implementation(capture_name(config.student.attention))
    learns = set(stage.trainable)
    if stage.lora is not None:
        if stage.lora.quantize is not None:
            original = partial(compose_again, section, dtype, config.run.seed)
            quantize_layers(student.language_model, dtype, device)
        add_adapters(student.language_model, stage.lora)
        learns = learns - {"language"} | {"adapters"}
    for name, parameters in parts(student).items():
        for parameter in parameters:
            parameter.requires_grad_(name in learns)
    if section.vision is not None and section.vision.standardize:
        measure_channels(config, composed, device)
    store = None
    if config.data.cache_features:
        store = cached_features(config, composed, teacher, device, rank, world)
    make_safe(task)
    if config.training.activation_checkpointing:
        checkpoint_layers(student)
    if rank == 0:
        Console().print(parameter_table(student, f"{stage.name}: {stage.steps} steps of {stage.batch_size} rows"))

    folder = run / "checkpoints" / stage.name
    args = training_arguments(config, stage, plan, folder, cpu)

    def batches(step: int) -> Any:
        return build_loader(
            config.data,
            composed.processor,
            seed=config.run.seed,
            batch_size=stage.batch_size,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            start_step=step,
            rejected=run / "rejected.jsonl",
            feature_store=store,
            teacher=side,
            teacher_rows=teacher.store if isinstance(teacher, CachedTeacher) else None,
            pairs=any(objective.reads_pairs for objective, _ in objectives),
        )

    trainer = DistillTrainer(
        task,
        args,
        stage,
        batches,
        accumulation,
        config.run.seed,
        [MetricsFile(run / "metrics.jsonl", stage.name), Progress(stage.steps, rank)],
        config.training.keep_checkpoints,
        stop_ids(composed),
    )
    run_trainer(trainer, folder, world, resume)
    export(trainer, composed, target, original)
    trainer.deepspeed.destroy()  # its hooks hold student, teacher and optimiser where the collector does not look
    dist.barrier()


def compose_again(section: StudentSection, dtype: Any, seed: int) -> dict[str, Any]:
    """The weights of a student as a stage began with them."""
    import torch

    from mmkd.compose import compose

    torch.manual_seed(seed)
    return compose(section, dtype).model.state_dict()


def training_arguments(config: Any, stage: Any, plan: tuple[int, int], folder: Path, cpu: bool) -> Any:
    """What transformers' Trainer is told for one stage of either kind of run. `folder` takes its checkpoints.

    Make it once all weights are loaded: with ZeRO-3 it would partition what is loaded after it.
    """
    from transformers import TrainingArguments

    micro, accumulation = plan
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=stage.gradient_clipping,
        logging_steps=config.training.log_every,
        logging_nan_inf_filter=False,
        save_steps=config.training.save_every,
        seed=config.run.seed,
        bf16=config.training.precision == "bf16",
        use_cpu=cpu,  # without it every rank on a CPU takes itself for the only one
        ignore_data_skip=True,
        remove_unused_columns=False,
        report_to=config.training.trackers or "none",
        project="mmkd",
        run_name=f"{folder.parent.parent.name}/{stage.name}",
        disable_tqdm=True,
        log_level="error",
        deepspeed=deepspeed_config(config.deepspeed, stage, config.training, micro, accumulation),
    )


def run_trainer(trainer: Any, folder: Path, world: int, resume: bool) -> None:
    """Train, with `resume` from the last whole checkpoint in `folder`. Raises TrainingError for one of other ranks."""
    checkpoint = latest_complete(folder) if resume else None
    if checkpoint is not None:
        trainer.checkpoint = checkpoint
        writers = len(list(checkpoint.glob("rng_state*.pth")))
        if writers != world:
            raise TrainingError(f"{checkpoint} was written by {writers} ranks, and here are {world}: start {writers}.")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def checkpoint_layers(student: Any) -> None:
    """Activation checkpointing of the decoder; our carried cache may be written twice, so its layers may keep it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    student.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in student.language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True
