"""The trainings of a competition: ordinary configs, with the start model and the data of a round put in."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mmkd.checkpoints import is_complete
from mmkd.config.compete_schema import TrainingRunSection
from mmkd.config.load import dump_config, load_config
from mmkd.config.schema import Config, SourceSection, StudentSection
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, TrainingError
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.items import Item, by_image
from mmkd.whole_files import write_whole

# (train or distill, config file, run folder): trains there or goes on, and leaves <run folder>/model.
Launch = Callable[[str, str, Path], None]


def round_config(section: TrainingRunSection, at: str) -> Config:
    """The training config as written, checked for use in every round.

    Args:
        at: key path, for messages.

    Raises: ConfigError.
    """
    start = ["student.vision=null", "student.language=null", "student.init=the model of the round before"]
    config = load_config(section.config, [*section.overrides, *start])
    for name in ("keep_layers", "voco"):
        if getattr(config.student, name) is not None:
            raise ConfigError(
                f"config: {at}.config {section.config} sets student.{name}, which would change the model anew in each "
                f"round. Do that in pretraining, and say {at}.overrides: [student.{name}=null]."
            )
    return config


def teacher_config(section: TrainingRunSection) -> Config:
    """As `round_config`. Raises ConfigError, also where a stage would train more than adapters."""
    config = round_config(section, "teacher_training")
    bare = [stage.name for stage in config.stages if stage.lora is None]
    if bare:
        raise ConfigError(
            f"config: teacher_training.config {section.config}: stage {bare[0]} has no lora; the teacher learns by "
            "adapters only."
        )
    return config


def preference_config(section: TrainingRunSection) -> Config:
    """As `round_config`. Raises ConfigError, also where a stage does not train on pairs, or its reference is kept."""
    from mmkd.teachers.pairs import check_pairs, reads_pairs  # torch, only where it is needed

    at = "preference_training"
    config = round_config(section, at)
    for stage in config.stages:
        if not reads_pairs(stage.objectives or config.objectives):
            raise ConfigError(
                f"config: {at}.config {section.config}: stage {stage.name} has neither dpo nor simpo among its "
                "objectives, and pairs are all that it is given."
            )
    if config.teacher is not None and config.teacher.kind == "cached":
        raise ConfigError(
            f"config: {at}.config {section.config}: the reference is the student of each round, of which no store is "
            "kept; write teacher: {kind: live}, whose model is put in."
        )
    check_pairs(config)
    return config


def placed(config: Config, run: Path, start: str, rows: Path, turns: int | None, seed: int) -> Config:
    """`config` from the model in `start`, on the records in `rows`."""
    source = SourceSection.model_validate({"source": "jsonl", "path": str(rows), "turns": turns, "seed": seed})
    return _placed(config, run, start, source, seed)


def placed_on_pairs(config: Config, run: Path, start: str, pairs: Path, seed: int) -> Config:
    """`config` from the model in `start`, which is a live teacher's, too, on preference pairs."""
    if config.teacher is not None and config.teacher.kind == "live":
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": start})})
    source = SourceSection.model_validate({"source": "preferences", "path": str(pairs)})
    return _placed(config, run, start, source, seed)


def _placed(config: Config, run: Path, start: str, source: SourceSection, seed: int) -> Config:
    student = StudentSection.model_validate(config.student.model_dump() | {"init": start})
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": str(run), "seed": seed}),
            "student": student,
            "data": config.data.model_copy(update={"mixture": [source]}),
        }
    )


def trained(config: Config, launch: Launch) -> str:
    """Train in `config.run.dir`, or go on there; the folder of the model. Raises TrainingError where there is none."""
    run = Path(config.run.dir)
    model = run / "model"
    if not is_complete(model):
        file = run.with_suffix(".yaml")
        write_whole(file, [dump_config(config)])
        launch("distill" if config.teacher is not None else "train", str(file), run)
    if not is_complete(model):
        raise TrainingError(f"the training in {run} ended and left no whole model. The same command again goes on.")
    return str(model)


def rows_of(
    pool: Sequence[Item], history: Iterable[Iterable[Outcome]], round: int, replay: float, seed: int
) -> Sequence[Item]:
    """What the student learns in a round: all that is new, and a share of the older pool.

    Left out is what the last verdict on an item found the teacher to be worse at, or not good enough at; one that is
    missing undoes none before it.

    Args:
        history: outcomes of the rounds before, oldest first.
    """
    every = (outcome for outcomes in history for outcome in outcomes)
    last = {outcome.id: outcome.kind for outcome in every if outcome.kind is not Kind.UNSCORED}
    old, new = array("q"), array("q")  # numbers of useful items
    for number, item in enumerate(pool):
        if last.get(item.id) not in (Kind.WIN, Kind.WEAK) and item.round < round:
            (new if item.round == round - 1 else old).append(number)
    again = random.Random(f"{seed}/replay/{round}").sample(old, int(replay * len(old)))
    return by_image(pool, sorted([*new, *again]))


def write_rows(path: Path, items: Iterable[Item], seed: int) -> int:
    """Returns how many. Raises TrainingError where there is nothing to learn from."""
    count = write_jsonl(path, (item.record(seed) for item in items))
    if not count:
        raise TrainingError(f"{path} would be empty: no answer is left that is worth learning. See gap and floor.")
    return count
