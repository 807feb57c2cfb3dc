"""Tiny runs on one or several ranks, forked from a server that has imported everything once."""

from __future__ import annotations

import json
import os
import queue
import runpy
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mmkd.config.schema import Config, StageSection
from mmkd.train import run as job
from mmkd.train import stage
from mmkd.train.run import train

CONTEXT = get_context("forkserver")


def on_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 600,
    meanwhile: Callable[[list[int]], None] | None = None,
) -> list[Any]:
    """`function(*args)` on every rank: what each returned, or the exception it raised, or None of one that was killed.

    `meanwhile(pids)` runs here at the same time.
    """
    results = CONTEXT.Queue()
    with free_port() as port:
        pass
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, results, function, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        if meanwhile is not None:
            meanwhile([process.pid for process in processes])
        end = time.monotonic() + timeout
        while len(found) < world and time.monotonic() < end:
            running = any(process.is_alive() for process in processes)
            try:
                rank, result = results.get(timeout=0.2)
                found[rank] = result
            except queue.Empty:
                if not running:
                    break
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    if time.monotonic() >= end:
        raise TimeoutError(f"ranks {sorted(set(range(world)) - set(found))} gave no answer in {timeout} s")
    return [found.get(rank) for rank in range(world)]


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def _rank(rank: int, world: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        results.put((rank, function(*args)))
    except Exception as error:
        traceback.print_exc()
        results.put((rank, error))
    else:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def run(config: dict[str, Any], world: int = 2, resume: bool = False) -> list[float]:
    """A whole run through `mmkd.train.run.train`: its losses. Raises the first error that a rank met."""
    for result in on_ranks(world, go, config, resume):
        if isinstance(result, Exception):
            raise result
    return losses(config)


def go(config: dict[str, Any], resume: bool = False) -> str:
    """One rank of a run."""
    return str(train(Config.model_validate(config), resume))


def tasks_left(config: dict[str, Any]) -> list[int]:
    """One rank of a run: how many stages' tasks are still in memory once each stage is finished."""
    tasks: list[weakref.ref] = []
    left: list[int] = []
    export, free = stage.export, job.free

    def exported(trainer: Any, *rest: Any) -> None:
        tasks.append(weakref.ref(trainer.task))
        export(trainer, *rest)

    def freed() -> None:
        free()
        left.append(sum(task() is not None for task in tasks))

    stage.export, job.free = exported, freed
    go(config)
    return left


def call(file: str, name: str, *args: Any) -> Any:
    """A function of a test file, which a rank cannot import by its name."""
    return runpy.run_path(file)[name](*args)


def lines(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(config["run"]["dir"]) / "metrics.jsonl").read_text().splitlines()]


def losses(config: dict[str, Any]) -> list[float]:
    """The logged loss of each step."""
    return [line["loss"] for line in lines(config)]


def one_plain_process(config: dict[str, Any]) -> list[float]:
    """The losses of the same config by a bare PyTorch loop: no Trainer, no DeepSpeed, no accumulation."""
    [result] = on_ranks(1, _plain, config)
    if isinstance(result, Exception):
        raise result
    return result


def _plain(config: dict[str, Any]) -> list[float]:
    import torch.distributed as dist

    from mmkd.compose import compose, parts
    from mmkd.data.loader import build_loader
    from mmkd.objectives import build
    from mmkd.teachers.live import build_teacher
    from mmkd.teachers.reading import counted
    from mmkd.teachers.tokenizers import teacher_side
    from mmkd.train.optimizer import build_optimizer, learning_rate_schedule
    from mmkd.train.task import DistillTask
    from mmkd.train.trainer import draw_reads

    dist.init_process_group("gloo")
    settings = Config.model_validate(config)
    stage: StageSection = settings.stages[0]
    torch.manual_seed(settings.run.seed)
    composed = compose(settings.student)
    teacher = build_teacher(settings.teacher, torch.float32, "sdpa", torch.device("cpu"))
    objectives = [(build(o), o.weight) for o in settings.objectives]
    side = teacher_side(settings.teacher, composed.processor, [objective for objective, _ in objectives])
    shared = side.shared_ids() if side is not None and side.own_tokens else None
    task = DistillTask(composed.model, objectives, teacher, shared_ids=shared)
    for name, parameters in parts(composed.model).items():
        for parameter in parameters:
            parameter.requires_grad_(name in stage.trainable)
    task.train()
    optimizer = build_optimizer(task, stage)
    for parameter in task.parameters():
        # A step that reads full vision has no gradient for the compression tokens. To ZeRO that is a gradient of zero,
        # so that Adam moves them by their momentum; to PyTorch alone it would be none, so that they stay.
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    schedule = learning_rate_schedule(optimizer, stage)
    batches = iter(
        build_loader(
            settings.data,
            composed.processor,
            seed=settings.run.seed,
            batch_size=stage.batch_size,
            micro_batch_size=stage.batch_size,
            rank=0,
            world_size=1,
            start_step=0,
            rejected=Path(settings.run.dir) / "plain-rejected.jsonl",
            teacher=side,
            pairs=any(objective.reads_pairs for objective, _ in objectives),
        )
    )
    found = []
    for step in range(stage.steps):
        batch = next(batches)
        answers, pairs, images, _ = counted(batch)
        normalizers = {"normalizer": answers, "pair_normalizer": pairs, "image_normalizer": images}
        loss = task(batch | normalizers | {"reads": draw_reads(stage, settings.run.seed, step)})
        loss.backward()
        if stage.gradient_clipping:
            torch.nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], stage.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=False)
        task.step_finished((step + 1) / stage.steps)
        found.append(float(loss.detach()))
    return found
