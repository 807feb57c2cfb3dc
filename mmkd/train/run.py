"""A whole run: its folder, and its stages one after the other."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmkd.checkpoints import is_complete, latest_complete, step_of
from mmkd.config.load import dump_config
from mmkd.config.schema import Config, TrainingSection
from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError
from mmkd.precision import native_bf16, on_cpu
from mmkd.train.deepspeed import deepspeed_config, patience, prepare_launch
from mmkd.train.environment import environment
from mmkd.train.quiet import quiet
from mmkd.train.stage import train_stage
from mmkd.train.watch import Watch

# What the order of a run's rows hangs on, beside the batch size of each stage.
ORDER = (("run", "seed"), ("data", "mixture"), ("data", "train"), ("data", "packing"), ("recipe", "batch_size"))

# What a begun stage's optimiser holds, or was made for.
OPTIMISER = ("trainable", "weight_decay", "optimizer", "average")


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
    folders = targets(run, [stage.name for stage in config.stages])
    with Watch(rank, world, lambda: how_to_go_on(config)):
        start = None
        for stage, plan, target in zip(config.stages, plans, folders, strict=True):
            if not is_complete(target):
                train_stage(config, stage, plan, run, start, target, rank, world, resume)
                free()
            start = target
    return folders[-1]


def free() -> None:
    """Give back what a finished stage held: two of them need not fit beside each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_run(config: Any, resume: bool) -> tuple[Any, list[tuple[int, int]], int, int]:
    """Make ready for a run of either kind: start the process group, write down config and environment.

    Returns: the config with its precision decided, (micro batch, accumulation) of each stage, rank, world size.

    Raises: ConfigError for a folder that holds a run already, or a batch or DeepSpeed setting that cannot be.
    """
    quiet()
    rank, world = prepare_launch(config.training.device)
    config = with_precision(config, resume)
    plans = [plan_batches(stage, world) for stage in config.stages]
    run = Path(config.run.dir)
    if not resume and (run / "config.yaml").exists():
        raise ConfigError(f"{run} already holds a run; go on with --resume, or name another run.dir.")
    require_same_order(config, run / "config.yaml")
    require_same_past(config, run)
    training = fp32(config.training) if isinstance(config, VisionConfig) else config.training
    for stage, (micro, accumulation) in zip(config.stages, plans, strict=True):
        deepspeed_config(config.deepspeed, stage, training, micro, accumulation)  # refuse before loading

    import torch.distributed as dist

    if not dist.is_initialized():
        import deepspeed

        deepspeed.init_distributed(verbose=False, timeout=patience())
    if rank == 0 and not is_complete(run / "model"):  # of a finished run they say how it was trained
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.dir {run} cannot be made: {error.strerror}.") from error
        partial = run / "config.yaml.partial"  # other ranks may be reading the one of the run that goes on
        partial.write_text(dump_config(config))
        os.replace(partial, run / "config.yaml")
        (run / "environment.json").write_text(json.dumps(environment(world), indent=1))
    dist.barrier()
    return config, plans, rank, world


def fp32(training: TrainingSection) -> TrainingSection:
    """What DeepSpeed is told of a classifier, whose weights and optimiser stay fp32: its task multiplies in bf16 by
    itself, since batch-norm statistics do not bear it."""
    return training.model_copy(update={"precision": "fp32"})


def with_precision(config: Any, resume: bool) -> Any:
    """`config` with `training.precision` decided: what a resumed run began with, else what the device is good at.

    Raises: ConfigError for a device that is not there.
    """
    cpu = on_cpu(config.training.device)
    if config.training.precision != "auto":
        return config
    written = Path(config.run.dir) / "config.yaml"
    if resume and written.exists():
        precision = yaml.safe_load(written.read_text())["training"]["precision"]
    else:
        precision = "bf16" if native_bf16(cpu) else "fp32"
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def require_same_order(config: Any, written: Path) -> None:
    """Raises ConfigError where a run that goes on would not read its rows in the order it began with: some would be
    skipped, some read twice."""
    if not written.exists():
        return
    before, now = yaml.safe_load(written.read_text()), config.model_dump(mode="json")
    pairs = [(f"{at}.{field}", before[at][field], now[at][field]) for at, field in ORDER if field in before.get(at, {})]
    begun = {stage["name"]: stage["batch_size"] for stage in before.get("stages", [])}
    pairs += [
        (f"batch_size of stage {stage['name']}", begun[stage["name"]], stage["batch_size"])
        for stage in now.get("stages", [])
        if stage["name"] in begun
    ]
    for path, there, here in pairs:
        if there != here:
            raise ConfigError(
                f"{path} is {here}, and the run in {written.parent} began with {there}: going on, it would skip rows "
                "or read them twice. Put it back, or name another run.dir."
            )


def require_same_past(config: Any, run: Path) -> None:
    """Raises ConfigError where a run that goes on would be told that it was trained otherwise than it was: a stage
    that is done cannot change, and one that is begun keeps its frozen weights and the groups of its optimiser."""
    written = run / "config.yaml"
    before, after = yaml.safe_load(written.read_text()) if written.exists() else {}, config.model_dump(mode="json")
    if not before:
        return
    stages, now = _stages(before), {stage["name"]: stage for stage in _stages(after)}
    names = [stage["name"] for stage in stages]
    if is_complete(run / "model") and list(now) != names:
        raise ConfigError(
            f"the run in {run} is finished, with the stages {', '.join(names)}: --resume adds none. Name another "
            f"run.dir, and student.init: {run / 'model'} to train on."
        )
    for then, target in zip(stages, targets(run, names), strict=True):
        here = now.get(then["name"])
        if here is None:
            continue
        if is_complete(target):
            fields, why = [f for f in then if f != "micro_batch_size"], f"is finished ({target})"
            shared = {"student": before["student"], **_used(before, then)}
        elif latest_complete(run / "checkpoints" / then["name"]):
            fields, why = list(OPTIMISER), "has a checkpoint that was made with it"
            if "learning_rates" in then and _sharing(then) != _sharing(here):
                fields += ["learning_rates"]
            shared = {"student": before["student"]}
        else:
            continue
        changed = [field for field in fields if field in here and then.get(field) != here[field]]
        found = [(f"{field} of stage {then['name']}", then.get(field), here[field]) for field in changed]
        for key, part in shared.items():
            found += _differences(key, part, after[key])
        for path, there, new in found:
            raise ConfigError(
                f"{path} is {new}, and was {there} in {written}: stage {then['name']} {why}. Put it back, or name "
                "another run.dir."
            )


def _stages(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a config as it is written; a classifier's recipe is the one stage that it has."""
    return config.get("stages") or [config["recipe"]]


def _used(config: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """What a stage takes from outside it, beside the student."""
    own = stage.get("objectives")
    asked = any(objective["name"] != "cross_entropy" for objective in own or config["objectives"])
    names = ["objectives"] * (not own) + ["teacher"] * asked
    read = {key: config["data"][key] for key in ("max_length", "rationales") if key in config["data"]}
    return {name: config[name] for name in names} | {"data": read}


def _differences(path: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, there, here) of what differs. Of sections only what both know counts: a run may go on with a newer mmkd.
    How attention is computed changes no weight."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() & here.keys() - {"attention"}):
            yield from _differences(f"{path}.{key}", there[key], here[key])
    elif there != here:
        yield path, there, here


def _sharing(stage: dict[str, Any]) -> dict[str, list[str]]:
    """Which parts learn at one rate: a group of the optimiser each."""
    rates = {"": stage["learning_rate"], **stage["learning_rates"]}
    return {name: [other for other in sorted(rates) if rates[other] == rates[name]] for name in rates}


def targets(run: Path, stages: list[str]) -> list[Path]:
    """The folder of the model that each stage makes."""
    return [run / "stages" / name for name in stages[:-1]] + [run / "model"]


def how_to_go_on(config: Any) -> str:
    """For the end of a message about a run that stopped: what is there to go on from."""
    run, names = Path(config.run.dir), [stage.name for stage in config.stages]
    for name, target in reversed(list(zip(names, targets(run, names), strict=True))):
        if is_complete(target):
            return f"{target} is whole: --resume goes on from it."
        if found := latest_complete(run / "checkpoints" / name):
            return f"The last whole checkpoint is {found}: --resume goes on from step {step_of(found)}."
    return "No checkpoint is whole yet: --resume starts the stage anew."


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
