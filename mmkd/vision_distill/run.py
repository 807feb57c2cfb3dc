"""A whole run of `kind: vision`: load, train, save the student, score it."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from mmkd.checkpoints import is_complete
from mmkd.config.vision_schema import ClassifierSection, VisionConfig
from mmkd.precision import on_cpu
from mmkd.train.checks import check_trackers
from mmkd.train.run import fp32, how_to_go_on, open_run
from mmkd.train.stage import run_trainer, training_arguments
from mmkd.train.watch import Watch
from mmkd.whole_files import write_whole


def train(config: VisionConfig, resume: bool = False) -> Path:
    """Train the student of `config` and return its folder, `<run>/model`, which timm loads as `local-dir:FOLDER`.

    Alone or under any launcher that sets RANK and WORLD_SIZE, as `mmkd.train.run.train`. The student of the last step
    is kept and scored once: no checkpoint is picked by its test score. Scores go to `<run>/scores.json`.

    Raises: ConfigError before anything is trained; TrainingError where a run has to stop.
    """
    from mmkd.vision_distill.checks import check_vision

    check_trackers(config.training.trackers)
    check_vision(config)
    config, plans, rank, world = open_run(config, resume)
    run = Path(config.run.dir)
    model = run / "model"
    with Watch(rank, world, lambda: how_to_go_on(config)):
        if not is_complete(model):
            train_student(config, plans[0], run, model, rank, world, resume)
        if rank == 0 and config.data.test is not None and not (run / "scores.json").exists():
            score(config, run, model)
    return model


def train_student(
    config: VisionConfig, plan: tuple[int, int], run: Path, target: Path, rank: int, world: int, resume: bool
) -> None:
    """Train the student and save it to `target`."""
    import torch
    import torch.distributed as dist
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from mmkd.train.callbacks import MetricsFile, Progress
    from mmkd.train.deepspeed import make_safe
    from mmkd.vision_distill.augment import check_augment, check_sizes
    from mmkd.vision_distill.checks import check_micro_batch, check_test
    from mmkd.vision_distill.classifiers import (
        check_classes,
        load_classifier,
        load_patch_teacher,
        preprocessing,
        save_classifier,
    )
    from mmkd.vision_distill.codebook import fitted
    from mmkd.vision_distill.loader import build_loader
    from mmkd.vision_distill.sources import open_images
    from mmkd.vision_distill.space_ofa import build_space_method
    from mmkd.vision_distill.spaces import SPACES, Patches, check_space, load_contrastive
    from mmkd.vision_distill.task import VisionTask
    from mmkd.vision_distill.trainer import VisionTrainer

    recipe = config.recipe
    options = check_space(config.space, config)
    check_augment(config, plan[0])
    check_micro_batch(config, plan[0])
    images = open_images(config.data.train, at="data.train", config=config)
    if config.data.test is not None:
        check_test(images, open_images(config.data.test, at="data.test", config=config))
    unset_hf_deepspeed_config()  # that of a run before would partition what is loaded here
    torch.manual_seed(config.run.seed)
    student = load_classifier(config.student, images.classes, "student")
    views = {"student_pixels": preprocessing(student)}
    cpu = on_cpu(config.training.device)
    teacher, space = None, None
    if config.teacher is not None and asks_teacher(config):
        if config.space.kind in ("contrastive", "prompts"):
            teacher = load_contrastive(config.teacher, config.space.kind)
            space = SPACES[config.space.kind](teacher, images.classes, **options)
        elif config.space.kind == "patches":
            teacher = load_patch_teacher(config.teacher)
        else:
            teacher = load_classifier(config.teacher, None, "teacher")
        views["teacher_pixels"] = preprocessing(teacher)
        teacher.model.eval().requires_grad_(False)
        if not cpu:
            teacher.model.to(torch.device("cuda", int(os.environ["LOCAL_RANK"])))
        if config.space.kind == "labels":
            check_classes(teacher, images.classes, "teacher")
        elif config.space.kind == "patches":
            space = Patches(teacher.model, teacher.size, **options)
            origin = config.teacher.model_dump(mode="json")
            codes = partial(fitted, space, images, views["teacher_pixels"], config.run.seed, run, origin)
            if rank == 0:
                codes()
            dist.barrier()
            space.rows = codes()
    methods = [
        (build_space_method(space, section.name, section.options(), f"objectives[{i}]", config), section.weight)
        for i, section in enumerate(config.objectives)
    ]
    check_sizes(config.data.augment, views)
    bf16 = config.training.precision == "bf16"
    make_safe(student.model)  # before its average is made
    task = VisionTask(
        student.model,
        student.size,
        methods,
        teacher.model if teacher else None,
        teacher.size if teacher else None,
        bf16=bf16,
        space=space,
        average=recipe.average,
    )
    make_safe(task)
    if rank == 0:
        print(table(task, teacher), flush=True)
    folder = run / "checkpoints" / recipe.name
    told = config.model_copy(update={"training": fp32(config.training)})
    args = training_arguments(told, recipe, plan, folder, cpu)

    def batches(step: int) -> Any:
        return build_loader(
            images,
            views,
            config.data.crop,
            seed=config.run.seed,
            batch_size=recipe.batch_size,
            micro_batch_size=plan[0],
            rank=rank,
            world_size=world,
            start_step=step,
            rejected=run / "rejected.jsonl",
            workers=config.data.workers,
            augment=config.data.augment,
        )

    trainer = VisionTrainer(
        task,
        args,
        recipe,
        batches,
        plan[1],
        config.run.seed,
        [MetricsFile(run / "metrics.jsonl", recipe.name), Progress(recipe.steps, rank)],
        config.training.keep_checkpoints,
    )
    run_trainer(trainer, folder, world, resume)
    weights = trainer.student_weights()
    if weights is not None:
        save_classifier(student, weights, images.classes, target)
    dist.barrier()


def asks_teacher(config: VisionConfig) -> bool:
    """Whether an objective learns from the teacher: one that is written down and not asked need not be there."""
    from mmkd.vision_distill.methods import METHODS

    return any(METHODS[section.name].teacher for section in config.objectives)


def table(task: Any, teacher: Any) -> str:
    """Two or three lines: what learns, and from what."""

    def line(name: str, model: Any, note: str) -> str:
        count = sum(parameter.numel() for parameter in model.parameters())
        return f"{name:<9} {type(model).__name__} ({count / 1e6:.1f} M{note})"

    lines = [line("student", task.student, ""), line("heads", task.methods, ", in training only")]
    return "\n".join(lines + ([line("teacher", teacher.model, ", frozen")] if teacher else []))


def score(config: VisionConfig, run: Path, model: Path) -> dict[str, Any]:
    """Top-1 on `data.test` of the saved student, opened again, and of its teacher, where that has these classes;
    written to `scores.json`."""
    from mmkd.vision_distill.classifiers import load_classifier
    from mmkd.vision_distill.scores import top1

    sections = {"student": ClassifierSection(model=str(model), image_size=config.student.image_size)}
    if config.teacher is not None and asks_teacher(config) and config.space.kind == "labels":
        sections["teacher"] = config.teacher
    scores = {name: top1(config, load_classifier(section, None, name), name) for name, section in sections.items()}
    write_whole(run / "scores.json", [json.dumps(scores, indent=1), "\n"])
    print(" · ".join(f"{name} {100 * s['top1']:.2f} % of {s['images']:,}" for name, s in scores.items()), flush=True)
    return scores
