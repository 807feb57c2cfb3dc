"""`mmkd compete`: stage 1, then rounds of learning, assessing and asking anew, each step done once."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from mmkd.config.compete_schema import CompeteConfig, RefineSection
from mmkd.config.load import load_config
from mmkd.config.schema import Config
from mmkd.config.synthesis_schema import ModelSection, VlmSection
from mmkd.data.on_disk import ById, Made
from mmkd.data.rejected import MOST_BAD, RejectedLog, mend_or_drop
from mmkd.errors import DataError
from mmkd.launch import launch as launch_training
from mmkd.steps import Steps
from mmkd.synthesis.competing import prepare, training
from mmkd.synthesis.competing.asking import Said, answered
from mmkd.synthesis.competing.assessing import Kind, Outcome, against_labels, assess, standing
from mmkd.synthesis.competing.augmenting import answered_well, check_augmentor, grow
from mmkd.synthesis.competing.card import card
from mmkd.synthesis.competing.costs import cost_table, costs
from mmkd.synthesis.competing.folder import alone, answer_limits, require_same
from mmkd.synthesis.competing.items import Item, open_items, open_rows, write_items, write_rows
from mmkd.synthesis.competing.pairs import FILE as PAIRS
from mmkd.synthesis.competing.pairs import gathered, preferences
from mmkd.synthesis.competing.refining import refine
from mmkd.synthesis.competing.summary import stopped_moving, table
from mmkd.synthesis.competing.training import Launch
from mmkd.synthesis.keys import require_keys
from mmkd.synthesis.requests import Sampling
from mmkd.whole_files import write_whole

GIVEN_REMEDY = mend_or_drop("pool and held_out")
ASKED_REMEDY = (
    "What was cut off or could not be read is asked for again, and it alone, once judge.max_tokens or "
    "sampling.max_tokens is raised; what has no label needs a judge.model."
)


def compete(config: CompeteConfig, launch: Launch | None = None) -> Path:
    """Run or go on with a competition in `config.out`.

    What was done by an earlier run of the same config is not done again: finished steps are kept, a training goes on
    from its last whole checkpoint, answers come from their stores.

    Args:
        launch: how a training is started; by default under the DeepSpeed launcher, on `config.ranks` processes.

    Returns: the file of one row a round.

    Raises: ConfigError, before any weight is loaded, for configs that cannot run, a folder with another competition, or
        held-out pictures that are trained on; DataError, TrainingError, BudgetSpent as the steps do.
    """
    out = Path(config.out)
    check_augmentor(config)
    require_keys(config)
    plans = {"training": training.round_config(config.training, "training")}
    if config.later_training is not None:
        plans["later_training"] = training.round_config(config.later_training, "later_training")
    if config.pretraining is not None:
        plans["pretraining"] = load_config(config.pretraining.config, config.pretraining.overrides)
    if config.preference_training is not None:
        plans["preference_training"] = training.preference_config(config.preference_training)
    if config.teacher_training is not None:
        plans["teacher_training"] = training.teacher_config(config.teacher_training)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out) as lock:
        require_same(out, config, plans)

        def under_launcher(job: str, file: str, run: Path) -> None:
            launch_training(job, file, run, ranks=config.ranks, keep=[lock])

        return Competition(config, plans, out, launch or under_launcher).run()


class Competition:
    """The steps, in order. Files of a round lie in `out`/round-N, pools in `out`/pool/N.jsonl."""

    def __init__(self, config: CompeteConfig, plans: dict[str, Config], out: Path, launch: Launch):
        self.config, self.plans, self.out, self.launch = config, plans, out, launch
        self.console = Console(stderr=True)
        self.steps = Steps(out / "steps")
        self.teacher = config.teacher  # of the coming round
        self.sampling = Sampling(**config.sampling.model_dump())

    def run(self) -> Path:
        self._step("prepare", self._prepare)
        self._step("pretraining", self._pretrain)
        # Where models lie is not taken from what steps returned: the folder may have been moved since.
        student = self.config.start or str(self.out / "pretraining" / "model")
        self._step("teacher", self._ask_teacher)
        rows = [self._row(0, 0, None, self._step("held-out-0", lambda: self._held_out(0, student)), None)]
        for number in range(1, self.config.rounds + 1):
            learned = self._step(f"train-{number}", lambda n=number, s=student: self._train(n, s))
            student, preferred = str(self._folder(number) / "student" / "model"), 0
            if "preference_training" in self.plans:
                turned = self._step(f"prefer-{number}", lambda n=number, s=student: self._prefer(n, s))
                if preferred := turned["pairs"]:
                    student = str(self._folder(number) / "preferred" / "model")
            pool = self._step(f"assess-{number}", lambda n=number, s=student: self._assess(n, s))
            refined = None
            if (mending := self.config.refine) is not None:
                refined = self._step(f"refine-{number}", lambda n=number, m=mending: self._refine(n, m))
            held = self._step(f"held-out-{number}", lambda n=number, s=student: self._held_out(n, s))
            rates = [row["held_out"]["win_rate"] for row in rows] + [held["win_rate"]]
            still = stopped_moving(rates, self.config.stop.least, self.config.stop.patience)
            new = None
            if number < self.config.rounds and not still:
                if self.config.feedback == "mutual":
                    taught = self._step(f"teach-{number}", lambda n=number: self._teach(n))
                    self._follow(taught and str(self._folder(number) / "teacher" / "model"))
                new = self._step(f"augment-{number}", lambda n=number: self._augment(n))
            more = {"preferred": preferred, "refined": refined}
            rows.append(self._row(number, learned["rows"], pool, held, new) | more)
            write_rows(self.out / "rounds.jsonl", rows)
            write_whole(self.out / "card.md", [card(self.config, self.out, rows)])
            if still and number < self.config.rounds:
                self.console.print(f"the held-out win rate has stopped moving; no round after {number}")
                break
        Console().print(table(rows, f"{self.out}: teacher against student, scores from 1 to 10"))
        self.console.print(cost_table(costs(self.out / "asked")))
        return self.out / "rounds.jsonl"

    def _step(self, name: str, work: Any) -> Any:
        return self.steps.run(name, work, begin=lambda: self.console.print(f"[bold]{name}[/]"))

    # --- before the first round --------------------------------------------------------------------------------------

    def _prepare(self) -> dict[str, int]:
        """The items of pool and held-out split, no picture in both, nor in what stage 1 trains on."""
        config, log = self.config, self._log("prepare")
        how = (self.out / "images", log, config.labels, config.independent)
        pool, trained = prepare.items_of(config.pool, "pool", *how)
        held_out, held = prepare.items_of(config.held_out, "held_out", *how)
        prepare.require_apart(held, trained, "pool")
        if "pretraining" in self.plans:
            mixture = self.plans["pretraining"].data.mixture
            prepare.require_apart(held, prepare.pixels_of(mixture, log), "the data of pretraining")
        return {
            "pool": write_items(self.out / "given" / "pool.jsonl", pool),
            "held_out": write_items(self.out / "given" / "held_out.jsonl", held_out),
        }

    def _pretrain(self) -> str:
        if self.config.start is not None:
            return self.config.start
        plan, run = self.plans["pretraining"], self.out / "pretraining"
        settings = plan.run.model_copy(update={"dir": str(run), "seed": self.config.seed})
        return training.trained(plan.model_copy(update={"run": settings}), self.launch)

    def _ask_teacher(self) -> dict[str, int]:
        given = open_items(self.out / "given" / "pool.jsonl")
        pool = answered_well(self.config, self.out, given, self.teacher, self._log("teacher"))
        return {"pool": write_items(self._pool(0), pool), "given": len(given)}

    # --- a round -----------------------------------------------------------------------------------------------------

    def _train(self, number: int, student: str) -> dict[str, Any]:
        config, folder = self.config, self._folder(number)
        history = [self._outcomes(earlier) for earlier in range(1, number)]
        items = training.rows_of(open_items(self._pool(number - 1)), history, number, config.replay, config.seed)
        count = training.write_rows(folder / "training.jsonl", items, config.seed)
        later = number > 1 and "later_training" in self.plans
        plan, teacher = self.plans["later_training" if later else "training"], self.teacher.vlm
        first = config.teacher.vlm
        if plan.teacher is not None and teacher is not None and first is not None and plan.teacher.model == first.model:
            plan = plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"model": teacher.model})})
        seed = config.seed + number
        plan = training.placed(plan, folder / "student", student, folder / "training.jsonl", config.turns, seed)
        return {"model": training.trained(plan, self.launch), "rows": count}

    def _prefer(self, number: int, student: str) -> dict[str, Any]:
        """The student learns the pairs of the rounds before; in the first there are none."""
        folder = self._folder(number)
        pairs = gathered([self._folder(earlier) for earlier in range(1, number)], folder)
        count = write_rows(folder / "pairs.jsonl", pairs)
        if not count:
            return {"model": student, "pairs": 0}
        plan, seed = self.plans["preference_training"], self.config.seed + number
        plan = training.placed_on_pairs(plan, folder / "preferred", student, folder / "pairs.jsonl", seed)
        return {"model": training.trained(plan, self.launch), "pairs": count}

    def _assess(self, number: int, student: str) -> dict[str, Any]:
        """Both on the pool: verdicts.jsonl, and preferences.jsonl with the student's wins."""
        pool = open_items(self._pool(number - 1))
        most = min(self.config.assess or len(pool), len(pool))
        chosen = set(random.Random(f"{self.config.seed}/assess/{number}").sample(range(len(pool)), most))
        items = Made(array("q", sorted(chosen)), pool.__getitem__)
        outcomes, found = self._both(items, student, f"assess-{number}")
        folder, by_id = self._folder(number), ById(items)
        write_rows(folder / "verdicts.jsonl", (outcome.row() for outcome in outcomes))
        write_rows(folder / PAIRS, preferences(outcomes, by_id, self.config.floor, folder))
        return found

    def _refine(self, number: int, section: RefineSection) -> dict[str, Any]:
        """Mended answers: refined.jsonl, and preferences.jsonl anew, with them in the teacher's place."""
        config, folder = self.config, self._folder(number)
        outcomes, log = self._outcomes(number), self._log(f"refine-{number}")
        items = ById(open_items(self._pool(number - 1)))
        result = refine(config, section, self.out, number, outcomes, items, self.teacher, log)
        write_rows(folder / "refined.jsonl", (one.row() for one in result.found.values()))
        write_rows(folder / PAIRS, preferences(outcomes, items, config.floor, folder, result.found))
        return result.counts()

    def _held_out(self, number: int, student: str) -> dict[str, Any]:
        """Both on the held-out split. The teacher is asked anew where it has learned; else its answers are kept.

        Raises: DataError where more than a tenth of the split has no verdict, however few its items are: what is left
            would choose when the rounds stop.
        """
        name = f"held-out-{number}"
        given = open_items(self.out / "given" / "held_out.jsonl")
        asked, config = self.out / "asked", self.config
        log, limits = self._log(f"{name}-teacher"), answer_limits(self.out, config)
        cut = config.may_be_cut
        told = answered(self.teacher, asked, given, self.sampling, log, config.reasks, "teacher", cut, limits=limits)
        outcomes, found = self._both(told, student, name)
        if (missing := len(given) - found["scored"]) > MOST_BAD * len(given):
            raise DataError(
                f"{missing} of {len(given)} held-out items have no verdict, more than {MOST_BAD:.0%}: the score "
                f"of the others is not that of the split. The reasons are in {self.out / 'rejected'}, in {name}.jsonl "
                f"and {name}-teacher.jsonl. {ASKED_REMEDY} The same command then goes on here."
            )
        write_rows(self._folder(number) / "held_out.jsonl", (outcome.row() for outcome in outcomes))
        return found

    def _teach(self, number: int) -> str | None:
        """The teacher learns from the student's wins that say something, are right, and that no order of answers
        decides."""
        outcomes, floor = self._outcomes(number), self.config.floor
        wins = ((place, one) for place, one in enumerate(outcomes) if one.kind is Kind.WIN)
        sure = ((place, one) for place, one in wins if one.agree and one.student.strip())
        places = array("q", (place for place, one in sure if one.scores and one.scores[1] >= floor))
        if not places or self.teacher.vlm is None:
            return None
        folder, items = self._folder(number), ById(open_items(self._pool(number - 1)))
        wins, model = Made(places, outcomes.__getitem__), f"student of round {number}"
        rows = (replace(items[win.id], answer=win.student, model=model) for win in wins)
        training.write_rows(folder / "teaching.jsonl", rows, self.config.seed)
        plan, seed = self.plans["teacher_training"], self.config.seed + number
        rows_file = folder / "teaching.jsonl"
        plan = training.placed(plan, folder / "teacher", self.teacher.vlm.model, rows_file, self.config.turns, seed)
        return training.trained(plan, self.launch)

    def _follow(self, teacher: str | None) -> None:
        """From here on that model is the teacher."""
        if teacher is not None and self.teacher.vlm is not None:
            vlm = self.teacher.vlm.model_copy(update={"model": teacher})
            self.teacher = self.teacher.model_copy(update={"vlm": vlm})

    def _augment(self, number: int) -> dict[str, Any]:
        log, pool = self._log(f"augment-{number}"), open_items(self._pool(number - 1))
        if self.teacher != self.config.teacher:  # it has learned: its old answers are another model's
            pool = answered_well(self.config, self.out, pool, self.teacher, self._log(f"pool-{number}"))
        grown = grow(self.config, self.out, number, pool, self._outcomes(number), self.teacher, log)
        size = write_items(self._pool(number), chain(pool, grown.items))
        share = len(grown.items) / max(grown.drafted, 1)
        return {"drafted": grown.drafted, "kept": len(grown.items), "yield": round(share, 4), "gone": grown.gone,
                "worded": grown.worded, "pool": size}  # fmt: skip

    # --- what they share ---------------------------------------------------------------------------------------------

    def _both(self, items: Sequence[Item], student: str, name: str) -> tuple[Sequence[Outcome], dict[str, Any]]:
        config, reading = self.config, self.config.student
        model = ModelSection(vlm=VlmSection(model=student, tokens=reading.tokens, batch_size=reading.batch_size))
        log, asked = self._log(name), self.out / "asked"
        said = answered(model, asked, items, self.sampling, log, config.reasks, "student", True, True)
        outcomes, bias = assess(config, self.out, items, Said(said), log)
        found = asdict(standing(outcomes)) | {"compared": bias.compared, "disagreed": bias.disagreed}
        if config.judge.model is not None and (trust := against_labels(outcomes, ById(items))):
            found["judge_against_labels"] = trust
        return outcomes, found

    def _row(self, number: int, trained: int, pool: Any, held: Any, new: Any) -> dict[str, Any]:
        judged = [part for part in (pool, held) if part]
        size = new["pool"] if new else len(open_items(self._pool(max(number - 1, 0))))
        return {
            "round": number,
            "trained": trained,
            "pool_standing": pool,
            "held_out": held,
            "compared": sum(part["compared"] for part in judged),
            "disagreed": sum(part["disagreed"] for part in judged),
            "augmented": new,
            "pool": size,
        }

    def _outcomes(self, number: int) -> Sequence[Outcome]:
        return open_rows(self._folder(number) / "verdicts.jsonl", lambda row, *_: Outcome.of(row))

    def _folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def _pool(self, number: int) -> Path:
        return self.out / "pool" / f"{number}.jsonl"

    def _log(self, step: str) -> RejectedLog:
        """Of one step, begun anew with it."""
        path = self.out / "rejected" / f"{step}.jsonl"
        path.unlink(missing_ok=True)
        return RejectedLog(path, GIVEN_REMEDY if step == "prepare" else ASKED_REMEDY)
