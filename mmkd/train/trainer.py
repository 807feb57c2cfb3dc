"""transformers' Trainer, told how mmkd counts tokens, orders data, and keeps checkpoints whole."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mmkd.checkpoints import keep_newest, mark_complete, step_of
from mmkd.config.schema import StageSection
from mmkd.errors import TrainingError
from mmkd.objectives import ULD, PairLoss, Ratio, TokenLoss
from mmkd.objectives.chunked import split_sizes
from mmkd.objectives.token_loss import smallest_chunk
from mmkd.teachers.reading import counted
from mmkd.train.callbacks import StepFinished, StepsOfTheConfig
from mmkd.train.on_policy import is_on_policy, own_answers
from mmkd.train.optimizer import build_optimizer, learning_rate_schedule
from mmkd.train.row_counts import RowCounts, require_row_counts, write_row_counts
from mmkd.train.task import DistillTask
from mmkd.train.watch import is_lost


def draw_reads(stage: StageSection, seed: int, step: int) -> list[int | None]:
    """The token counts (None: full vision) read at a step: a pure function of (seed, step), the same on every rank.

    With `progressive`, entry i of `read` joins once i/len(read) of the steps are done.
    """
    choices: list[int | None] = [None if r == "full" else int(r) for r in stage.read]
    weights = stage.read_weights or [1.0] * len(choices)
    if stage.progressive:
        reached = 1 + min(len(choices) - 1, step * len(choices) // stage.steps)
        choices, weights = choices[:reached], weights[:reached]
    generator = random.Random(f"{seed}/{step}")
    drawn: list[int | None] = []
    pool = [(choice, weight) for choice, weight in zip(choices, weights, strict=True) if weight > 0]
    while pool and len(drawn) < stage.reads:
        choice = generator.choices(pool, [weight for _, weight in pool])[0]
        pool.remove(choice)
        drawn.append(choice[0])
    return drawn


class FixedLength:
    """An iterable of known length, so that the Trainer plans one pass."""

    def __init__(self, batches: Any, length: int):
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)


class DistillTrainer(Trainer):
    """Trains a DistillTask.

    Args:
        task: what is trained.
        stage: the stage's settings.
        batches: start_step -> loader of the micro batches of this rank.
        accumulation: micro batches of an optimiser step on a rank.
        keep: whole checkpoints kept.
        stop_ids: tokens that end an answer of the student; for stages with `on_policy`.
    """

    build_optimizer: Callable[..., torch.optim.Optimizer] = staticmethod(build_optimizer)
    learning_rate_schedule: Callable[..., Any] = staticmethod(learning_rate_schedule)

    def __init__(
        self,
        task: DistillTask,
        args: TrainingArguments,
        stage: StageSection,
        batches: Callable[[int], Any],
        accumulation: int,
        seed: int,
        callbacks: list[Any],
        keep: int = 2,
        stop_ids: Sequence[int] = (),
    ):
        self.task = task
        super().__init__(model=task, args=args, callbacks=[StepsOfTheConfig(), StepFinished(task), *callbacks])
        self.stage, self.batches, self.accumulation, self.run_seed = stage, batches, accumulation, seed
        # The task divides by the tokens of the whole step itself; the Trainer must not scale a second time.
        self.model_accepts_loss_kwargs = False
        self.sums: dict[str, Ratio] = {}
        self.tokens = self.padding = self.waited = 0.0
        self.window = time.perf_counter()
        self.checkpoint: Path | None = None  # the one that the run goes on from
        self.row_counts: RowCounts = {}
        self.keep, self.stop_ids = keep, stop_ids
        self.remove_callback(PrinterCallback)  # Progress says it better

    # Under DeepSpeed the Trainer drops an optimiser and schedule handed to it and makes its own defaults; so they are
    # made here, where it makes them.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.build_optimizer(self.task, self.stage)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = self.learning_rate_schedule(optimizer or self.optimizer, self.stage)
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Rates are the config's, not the checkpoint's: lowering them is what a run that diverged is told."""
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # as accelerate wraps it
        rates = list(schedule.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule.base_lrs = rates
        schedule._last_lr = schedule.get_lr()
        for group, base, rate in zip(schedule.optimizer.param_groups, rates, schedule._last_lr, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    def get_train_dataloader(self) -> Any:
        # Already sharded by rank and started at the right sample, so it does not go through accelerate.
        batches = self.batches(step_of(self.checkpoint) if self.checkpoint else 0)
        self.row_counts = batches.dataset.row_counts()
        if self.checkpoint:
            require_row_counts(self.checkpoint, self.row_counts)
        return FixedLength(batches, self.args.max_steps * self.accumulation)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        samples = self._take(epoch_iterator, num_batches)
        step = self.state.global_step
        reads = draw_reads(self.stage, self.run_seed, step)
        own = is_on_policy(self.stage.on_policy, self.run_seed, step)
        if own:
            samples = [self._own_answers(batch, reads, f"{step}/{number}") for number, batch in enumerate(samples)]
            for batch in samples:
                batch.pop("loss_weights", None)  # of the data's answers
        totals = torch.tensor([counted(batch) for batch in samples], device=device).sum(0).float()
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world > 1:
            dist.all_reduce(totals)
        answers, pairs, images, units = totals
        for batch in samples:
            # DeepSpeed averages over ranks, the Trainer over accumulation: together, the mean over all answers.
            batch["normalizer"] = answers.clamp_min(1.0) / (world * len(samples))
            batch["pair_normalizer"] = pairs.clamp_min(1.0) / (world * len(samples))
            batch["image_normalizer"] = images.clamp_min(1.0) / (world * len(samples))
            if "loss_weights" in batch:
                # Each answer counts one, however long: for the mean over answers, not over tokens.
                batch["loss_weights"] = batch["loss_weights"].to(device) * (answers / units.clamp_min(1.0))
            batch["reads"], batch["on_policy"] = reads, own
            batch["head_calls"] = self._head_calls(batch, world, device)
            self.tokens += float(batch["attention_mask"].sum())
            self.padding += float((1 - batch["attention_mask"]).sum())
        return samples, None

    def _prepare_input(self, data: Any) -> Any:
        """To the device, each tensor in its own dtype: transformers casts every float of a batch to the model's, also
        log-probabilities of a cached teacher and what losses are divided by. The model casts images itself."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device)
        if isinstance(data, dict):
            return {name: self._prepare_input(value) for name, value in data.items()}
        if isinstance(data, list | tuple):
            return type(data)(self._prepare_input(value) for value in data)
        return data

    def _own_answers(self, batch: dict[str, Any], reads: list[int | None], place: str) -> dict[str, Any]:
        seed = f"{self.run_seed}/{place}/{self.args.process_index}"
        task, section = self.task, self.stage.on_policy
        return own_answers(task.student, batch, reads[0], section, self.stop_ids, seed, task.readable_ids())

    def _take(self, batches: Iterator, count: int) -> list[dict[str, Any]]:
        """The next micro batches of this rank; the wait for them is counted."""
        started = time.perf_counter()
        taken = [dict(batch) for _, batch in zip(range(count), batches, strict=False)]
        self.waited += time.perf_counter() - started
        return taken

    def _head_calls(self, batch: dict[str, Any], world: int, device: torch.device) -> int | None:
        """How often every rank must call the head: ZeRO-3 gathers its weight each time, so ranks must agree."""
        token_objectives = [o for o in self.task.objectives if isinstance(o, TokenLoss | ULD | PairLoss)]
        if world == 1 or not token_objectives:
            return None
        answers = int((batch["labels"][:, 1:] != -100).sum())
        calls = torch.tensor(len(split_sizes(answers, smallest_chunk(token_objectives))), device=device)
        dist.all_reduce(calls, op=dist.ReduceOp.MAX)
        return int(calls)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> torch.Tensor:
        loss = model(inputs)
        for name, ratio in self.task.report.items():
            self.sums[name] = self.sums[name].plus(ratio) if name in self.sums else ratio
        self._check(loss.detach(), inputs)
        return loss

    def _check(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Raises TrainingError on every rank where one of them met a loss that is no number; else the others hang."""
        broken = (~torch.isfinite(loss)).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(broken)
        if not broken:
            return
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (float(loss), inputs["sample_ids"]))
        rank, (value, samples) = next((r, f) for r, f in enumerate(found) if not math.isfinite(f[0]))
        raise TrainingError(
            f"the loss is {value} at step {self.state.global_step + 1} on rank {rank}, samples "
            f"{', '.join(samples[:4])}. Lower the learning rate, raise the warm-up, or look at those samples."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._figures()
        super().log(logs, start_time)

    def _figures(self) -> dict[str, float]:
        names = sorted(self.sums)
        values = torch.tensor(
            [[float(self.sums[n].total), float(self.sums[n].count)] for n in names] + [[self.tokens, self.padding]],
            dtype=torch.float64,
        )
        # Token counts drawn at a step are the same on every rank, so the names are too.
        if dist.is_initialized() and dist.get_world_size() > 1:
            device = self.args.device
            values = values.to(device)
            dist.all_reduce(values)
            values = values.cpu()
        elapsed = time.perf_counter() - self.window
        tokens, padding = values[-1].tolist()
        # A figure of which nothing came in these steps has no mean, and JSON no name for that.
        figures = {n: t / c for n, (t, c) in zip(names, values[:-1].tolist(), strict=True) if c}
        figures |= {
            "tokens": tokens,
            "tokens_per_second": tokens / elapsed,
            "padding": padding / max(tokens + padding, 1.0),
            "data_wait": self.waited / elapsed,
        }
        self.sums, self.tokens, self.padding, self.waited = {}, 0.0, 0.0, 0.0
        self.window = time.perf_counter()
        return figures

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: a checkpoint is DeepSpeed's own; the student is exported once, by `export`."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, mark it whole, and only then delete older ones."""
        run = Path(self.args.output_dir)
        folder = run / f"checkpoint-{self.state.global_step}"
        try:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # an earlier try, whose files must not count for this one
            dist.barrier()
            super()._save_checkpoint(model, trial)
            dist.barrier()
            if self.args.should_save:
                mark_complete(folder)
                keep_newest(run, self.keep)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_lost(error):
                raise
            free = shutil.disk_usage(run).free / 1e9
            raise TrainingError(
                f"{folder} could not be written ({str(error).splitlines()[0]}); {free:.1f} GB are free there. "
                "Make room, or set training.save_every or run.dir anew."
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Frozen parameters are those of the model that the stage starts from: neither written nor asked for again.
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
            write_row_counts(Path(output_dir), self.row_counts)

    def student_weights(self) -> dict[str, torch.Tensor] | None:
        """Whole weights of the student on rank 0, None elsewhere. Every rank must call it."""
        state: dict[str, Any] = self.accelerator.get_state_dict(self.deepspeed)  # pyright: ignore[reportAssignmentType]
        if not self.args.should_save:
            return None
        prefix = "student."
        return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
