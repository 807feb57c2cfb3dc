"""A whole run: compose, train its stages one after the other, export the student."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mmkd.checkpoints import is_complete, latest_complete, mark_complete, step_of
from mmkd.config.load import dump_config
from mmkd.config.schema import Config, StageSection, StudentSection
from mmkd.errors import ConfigError, TrainingError
from mmkd.precision import native_bf16
from mmkd.train.deepspeed import deepspeed_config, make_safe, prepare_launch
from mmkd.train.quiet import quiet
from mmkd.train.watch import Watch

log = logging.getLogger(__name__)


def train(config: Config, resume: bool = False) -> Path:
    """Run every stage of `config` and return the folder of the trained model (`<run>/model`).

    Alone or under any launcher that sets RANK and WORLD_SIZE. With `resume`, finished stages are skipped and the
    unfinished one goes on from its last whole checkpoint, with the same data order.

    Raises: ConfigError before any weight is loaded; TrainingError where a run has to stop.
    """
    from mmkd.lora import check_lora
    from mmkd.objectives.kernels import check_kernels
    from mmkd.teachers.checks import check_teacher
    from mmkd.teachers.pairs import check_pairs
    from mmkd.train.checks import check_run
    from mmkd.train.on_policy import check_on_policy

    check_run(config)
    check_teacher(config)
    check_kernels(config)
    check_lora(config)
    check_on_policy(config)
    check_pairs(config)
    config, plans, rank, world = open_run(config, resume)
    run = Path(config.run.dir)
    model_folder = run / "model"

    targets = [run / "stages" / stage.name for stage in config.stages[:-1]] + [model_folder]
    with Watch(rank, world, lambda: how_to_go_on(config)):
        start = None
        for stage, plan, target in zip(config.stages, plans, targets, strict=True):
            if not is_complete(target):
                train_stage(config, stage, plan, run, start, target, rank, world, resume)
            start = target
    return model_folder


def open_run(config: Any, resume: bool) -> tuple[Any, list[tuple[int, int]], int, int]:
    """Make ready for a run of either kind: start the process group, write down config and environment.

    Returns: the config with its precision decided, (micro batch, accumulation) of each stage, rank, world size.

    Raises: ConfigError for a folder that holds a run already, or a batch or DeepSpeed setting that cannot be.
    """
    quiet()
    rank, world = prepare_launch()
    config = with_precision(config, resume)
    plans = [plan_batches(stage, world) for stage in config.stages]
    run = Path(config.run.dir)
    if not resume and (run / "config.yaml").exists():
        raise ConfigError(f"{run} already holds a run; go on with --resume, or name another run.dir.")
    for stage, (micro, accumulation) in zip(config.stages, plans, strict=True):
        deepspeed_config(config.deepspeed, stage, config.training, micro, accumulation)  # refuse before loading

    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]) if not torch.cuda.is_available() else 1)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # where objects are exchanged
    if not dist.is_initialized():
        import deepspeed

        deepspeed.init_distributed(verbose=False)
    if rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        partial = run / "config.yaml.partial"  # other ranks may be reading the one of the run that goes on
        partial.write_text(dump_config(config))
        os.replace(partial, run / "config.yaml")
        (run / "environment.json").write_text(json.dumps(environment(world), indent=1))
    dist.barrier()
    return config, plans, rank, world


def with_precision(config: Any, resume: bool) -> Any:
    """`config` with `training.precision` decided: what a resumed run began with, else what the device is good at."""
    if config.training.precision != "auto":
        return config
    import torch

    written = Path(config.run.dir) / "config.yaml"
    if resume and written.exists():
        precision = yaml.safe_load(written.read_text())["training"]["precision"]
    else:
        on_cpu = not torch.cuda.is_available() or config.training.device == "cpu"
        precision = "bf16" if native_bf16(on_cpu) else "fp32"
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def how_to_go_on(config: Any) -> str:
    """For the end of a message about a run that stopped: what is there to go on from."""
    folders = [Path(config.run.dir) / "checkpoints" / stage.name for stage in config.stages]
    found = next((whole for whole in map(latest_complete, reversed(folders)) if whole is not None), None)
    if found is None:
        return "No checkpoint is whole yet: --resume starts the stage anew."
    return f"The last whole checkpoint is {found}: --resume goes on from step {step_of(found)}."


def plan_batches(stage: Any, world: int) -> tuple[int, int]:
    """(micro batch, accumulation) with which `world` ranks make the stage's batch. Raises ConfigError."""
    if stage.batch_size % world:
        raise ConfigError(f"stage {stage.name}: batch_size {stage.batch_size} does not divide by {world} ranks.")
    share = stage.batch_size // world
    micro = stage.micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"stage {stage.name}: batch_size {stage.batch_size} is {share} rows on each of {world} ranks, which "
            f"micro_batch_size {micro} does not divide."
        )
    return micro, share // micro


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
    from mmkd.train.task import DistillTask
    from mmkd.train.trainer import DistillTrainer

    micro, accumulation = plan
    on_cpu = not torch.cuda.is_available() or config.training.device == "cpu"
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    device = torch.device("cpu") if on_cpu else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
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
    teacher = build_teacher(config.teacher, dtype, config.student.attention, device, zero_settings)
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
    args = training_arguments(config, stage, plan, folder, on_cpu)

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
        tokenizer.all_special_ids,
    )
    run_trainer(trainer, folder, world, resume)
    export(trainer, composed, target, original)
    dist.barrier()


def compose_again(section: StudentSection, dtype: Any, seed: int) -> dict[str, Any]:
    """The weights of a student as a stage began with them."""
    import torch

    from mmkd.compose import compose

    torch.manual_seed(seed)
    return compose(section, dtype).model.state_dict()


def training_arguments(config: Any, stage: Any, plan: tuple[int, int], folder: Path, on_cpu: bool) -> Any:
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
        use_cpu=on_cpu,  # without it every rank on a CPU takes itself for the only one
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
        trainer.start_step = step_of(checkpoint)
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


def export(trainer: Any, composed: Any, target: Path, original: Callable[[], dict[str, Any]] | None = None) -> None:
    """Write the student (and nothing of teacher, heads or optimiser), reopen the file, compare names and shapes.

    Args:
        original: makes the weights anew that the stage quantised.
    """
    weights = trainer.student_weights()
    if weights is None:
        return
    from safetensors import SafetensorError, safe_open

    from mmkd.bits import restored
    from mmkd.lora import merged
    from mmkd.models.attention_capture import plain_name

    if original is not None:
        weights = restored(composed.model, weights, original())
    weights = merged(composed.model, weights)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    composed.model.set_attn_implementation(plain_name(composed.model.config.text_config._attn_implementation))
    try:
        composed.model.save_pretrained(partial, state_dict=weights)
        composed.processor.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{partial} could not be written ({error}). Make room.") from error
    written = {}
    for path in partial.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            written |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    tied = set(composed.model.all_tied_weights_keys)
    wrong = [n for n, s in shapes.items() if n not in tied and written.get(n) != s]
    empty = [n for n, s in written.items() if 0 in s]
    if wrong or empty:
        raise TrainingError(
            f"{partial} was written with missing or empty weights ({', '.join((wrong + empty)[:3])}): mend the cause."
        )
    mark_complete(partial)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)


def environment(world: int) -> dict[str, Any]:
    """Versions, machine, commit: what is needed to run it again."""
    names = ("mmkd", "torch", "transformers", "deepspeed", "accelerate", "timm", "peft")
    try:
        changed = _git("status", "--porcelain", "-uno", "--", "mmkd", "adapters", "configs")
        commit = _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "world_size": world,
        "commit": commit,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    ).stdout.strip()
