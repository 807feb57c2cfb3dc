"""The shape of the YAML of `mmkd compete`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmkd.config.schema import OpenSection, Section, SourceSection
from mmkd.config.synthesis_schema import BlindTriesSection, ModelSection, SamplingSection


class TrainingRunSection(Section):
    """A training config and what is changed in it; start model and data of a round are put in by compete."""

    config: str = Field(description="YAML file or packaged config of mmkd train or distill.")
    overrides: list[str] = Field(default_factory=list, description="path=value, as on the command line.")


class StudentReadingSection(Section):
    """How the student is asked."""

    tokens: int | Literal["full"] | None = Field(None, description="Tokens an image is read as; the model's own.")
    batch_size: int = Field(8, ge=1)


class JudgeSection(Section):
    """Who scores: a model that sees the image, in both orders; or, without one, the items' labels."""

    model: ModelSection | None = None
    form: Literal["words", "digit"] = Field(
        "words", description="words: reasons and scores as JSON. digit: of a judge that mmkd judge has trained."
    )
    max_tokens: int = Field(400, ge=1, description="Of one verdict.")

    @model_validator(mode="after")
    def asks(self) -> JudgeSection:
        if self.form == "digit" and self.model is None:
            raise ValueError("has form digit and no model; labels judge without one: give model, or leave form out")
        return self


class AugmentSection(OpenSection):
    name: str = Field(description="grounded, llm, or one of a plug-in; its other keys are that augmentor's options.")
    count: int = Field(600, ge=1, description="New questions drafted in a round.")
    hard_share: list[float] = Field(
        [0.5],
        min_length=1,
        description="Share of them made from difficult items, by round, the last for all that follow; rising, e.g. "
        "[0.5, 0.7, 0.9], is a curriculum. The rest is made from easy ones, against forgetting.",
    )

    @model_validator(mode="after")
    def shares(self) -> AugmentSection:
        if any(not 0 <= share <= 1 for share in self.hard_share):
            raise ValueError("hard_share takes numbers from 0 to 1")
        return self


class BlindFilterSection(BlindTriesSection):
    max_tokens: int | None = Field(None, ge=1, description="Of one answer; sampling.max_tokens by default.")


class FilterSection(Section):
    """Which drafts go."""

    similarity: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L from which a question is a near-duplicate of one on the same picture."
    )
    grounding: ModelSection | None = Field(
        None, description="Asked, with the picture, whether a question fits it; drafts with a known answer need it not."
    )
    blind: BlindFilterSection | None = Field(
        None, description="Asked without the picture; what it answers as the teacher does, in all tries, goes."
    )


class RefineSection(Section):
    """Who mends the student's failed answers, for preference pairs that differ only in what matters (SPaR)."""

    model: ModelSection | None = Field(None, description="Sees images, and replies as JSON; the teacher by default.")
    tries: int = Field(2, ge=1, description="Attempts in all: what the judge does not accept is mended anew.")
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(768, ge=1)

    @model_validator(mode="after")
    def drawn(self) -> RefineSection:
        if self.tries > 1 and self.temperature == 0:
            raise ValueError(f"has tries {self.tries} at temperature 0, which says the same each time; it needs more")
        return self


class StopSection(Section):
    """When the held-out win rate has stopped moving."""

    least: float = Field(0.01, ge=0, description="A rise over the best round before that counts.")
    patience: int = Field(2, ge=1, description="Rounds without such a rise.")


class CompeteConfig(Section):
    """`mmkd compete`: rounds of competitive distillation (CoMD, arXiv 2311.08213)."""

    out: str = Field(description="Folder of the whole competition.")
    seed: int = Field(0, ge=0)
    rounds: int = Field(4, ge=1)
    ranks: int = Field(2, ge=1, description="Processes of each training on this machine.")
    pretraining: TrainingRunSection | None = Field(None, description="Stage 1, an ordinary run.")
    start: str | None = Field(None, description="In the place of stage 1: the model folder that round 1 starts from.")
    training: TrainingRunSection = Field(description="The training of each round.")
    later_training: TrainingRunSection | None = Field(
        None, description="From round 2 on, in the place of `training`; e.g. the same at a lower learning rate."
    )
    preference_training: TrainingRunSection | None = Field(
        None,
        description="After the training of each round: one by dpo or simpo on the pairs of the rounds before; start "
        "model, reference and data are put in.",
    )
    turns: int | None = Field(None, ge=1, description="Most questions on one picture in a row of the training data.")
    replay: float = Field(1.0, ge=0, le=1, description="Share of the older pool that a round learns again.")
    teacher: ModelSection
    student: StudentReadingSection = Field(default_factory=lambda: StudentReadingSection())
    sampling: SamplingSection = Field(default_factory=lambda: SamplingSection(), description="Of both their answers.")
    may_be_cut: bool = Field(False, description="Learn teacher answers that ran into sampling.max_tokens.")
    judge: JudgeSection = Field(default_factory=lambda: JudgeSection())
    gap: float = Field(1.0, gt=0, description="Points of 1 to 10 from which one side is clearly better.")
    floor: float = Field(7.0, ge=1, le=10, description="Least points of an answer that somebody learns from.")
    check_teacher: bool = Field(
        True, description="Score the teacher's answers before the student learns them; off, as published."
    )
    feedback: Literal["frozen", "mutual"] = Field(
        "frozen",
        description="frozen, as published: the student's failures choose what is asked next, the teacher stays. "
        "mutual: it learns, too, by `teacher_training`, from answers of the student that both orders prefer.",
    )
    teacher_training: TrainingRunSection | None = Field(
        None, description="With mutual: a training whose stages all have lora; start model and data are put in."
    )
    refine: RefineSection | None = Field(
        None, description="Have the student's failed answers mended; the pairs take the place of the teacher's."
    )
    pool: list[SourceSection] = Field(min_length=1, description="As data.mixture, without weights.")
    held_out: list[SourceSection] = Field(min_length=1, description="Assessed each round, never trained on.")
    labels: bool = Field(True, description="The answers in the records are right; False: not known to be.")
    independent: bool = Field(
        True, description="Each question of a record stands alone; False takes the first of each record only."
    )
    assess: int | None = Field(None, ge=1, description="Most items of the pool that are assessed in a round.")
    augment: AugmentSection
    filters: FilterSection = Field(default_factory=lambda: FilterSection())
    stop: StopSection = Field(default_factory=lambda: StopSection())
    reasks: int = Field(2, ge=0, description="How often a reply that is no answer is asked for again.")

    @model_validator(mode="after")
    def whole(self) -> CompeteConfig:
        if (self.pretraining is None) == (self.start is None):
            raise ValueError("needs one of pretraining and start")
        refiner = self.refine.model if self.refine is not None else None
        seeing = {"teacher": self.teacher, "judge.model": self.judge.model, "refine.model": refiner}
        for name, model in (seeing | {"filters.grounding": self.filters.grounding}).items():
            if model is not None and model.language is not None:
                raise ValueError(f"{name} has to see images, and a language model does not; use vlm or endpoint")
        if not self.labels and self.judge.model is None:
            raise ValueError(
                "labels is false and judge.model is missing: the records' answers judge where no model does. Give "
                "judge.model, or labels: true where the answers are right"
            )
        if (self.feedback == "mutual") != (self.teacher_training is not None):
            raise ValueError("feedback mutual needs teacher_training, and frozen takes none")
        if self.feedback == "mutual" and self.teacher.vlm is None:
            raise ValueError("feedback mutual trains the teacher, so it has to be a vlm of this machine")
        return self
