"""The shape of a YAML with `kind: vision`: a timm student learns to classify from a timm teacher."""

from __future__ import annotations

from math import inf
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mmkd.config.schema import DeepspeedSection, ObjectiveSection, RunSection, TrainingSection
from mmkd.config.sections import OpenSection, Section


class ClassifierSection(Section):
    model: str = Field(
        description="timm:NAME, or the folder of a trained classifier, e.g. runs/vision/teacher/model; of a teacher in "
        "the spaces contrastive and prompts open_clip:MODEL/TAG, of patches a tower of any source, e.g. "
        "hf:google/siglip-base-patch16-224."
    )
    image_size: int | None = Field(None, ge=8, description="Side in pixels; the model's own by default.")
    pretrained: bool = Field(True, description="False starts from random weights.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of timm.create_model, e.g. {depth: 6, drop_path_rate: 0.1}.",
    )


class ImagesSection(OpenSection):
    source: str = Field(description="folder, datasets, easyvqa or digits.")
    fold: tuple[int, int] | None = Field(
        None,
        description="[i, n]: only images i, i + n, i + 2n .. of the source; [0, 7] and [1, 7] are two of seven parts "
        "that share no image.",
    )

    @field_validator("fold")
    @classmethod
    def one_of_n(cls, fold: tuple[int, int] | None) -> tuple[int, int] | None:
        if fold is not None and not 0 <= fold[0] < fold[1]:
            raise ValueError(f"is {list(fold)}; allowed: [i, n] with 0 <= i < n")
        return fold


class SpaceSection(OpenSection):
    kind: str = Field(
        "labels",
        description="labels; contrastive or prompts (teacher.model is an open_clip model, whose text tower gives the "
        "rows); or patches (a codebook of the teacher's patch features).",
    )


class CropSection(Section):
    """What of an image a training step sees; both models see the same."""

    scale: tuple[float, float] = Field((1.0, 1.0), description="Least and largest share of the image's area.")
    ratio: tuple[float, float] = Field((0.75, 1.3333), description="Least and largest width / height of a crop.")
    flip: float = Field(0.0, ge=0, le=1, description="Chance of a left-right flip.")
    center: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Side of the central square that is scored, as a share of the image's short side; by default the "
        "whole image, squashed.",
    )

    @field_validator("scale")
    @classmethod
    def shares_of_an_area(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"is {list(scale)}; allowed: [least, largest] with 0 < least <= largest <= 1")
        return scale

    @field_validator("ratio")
    @classmethod
    def shapes(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ratio[0] <= ratio[1] < inf:
            raise ValueError(f"is {list(ratio)}; allowed: [least, largest] with 0 < least <= largest")
        return ratio


class AugmentSection(Section):
    """What timm does to training images beside crop and flip; both models see the same."""

    rand_augment: str | None = Field(
        None, pattern=r"^rand-", description="timm's description of RandAugment, e.g. rand-m9-mstd0.5-inc1."
    )
    erasing: float = Field(0.0, ge=0, le=1, description="Chance that a box of noise hides part of an image.")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; with cutmix too, each is taken half of the time.")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix.")

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class LabelledSection(Section):
    train: ImagesSection
    test: ImagesSection | None = Field(None, description="Scored once, after training.")
    crop: CropSection = Field(default_factory=lambda: CropSection())
    augment: AugmentSection = Field(default_factory=lambda: AugmentSection())
    workers: int = Field(0, ge=0)


class RecipeSection(Section):
    name: Literal["distill"] = "distill"
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Images of one optimiser step, over all ranks and accumulation.")
    micro_batch_size: int | None = Field(None, ge=1, description="Images of one forward on one rank.")
    optimizer: Literal["adamw", "sgd", "lamb"] = Field("adamw", description="sgd has Nesterov momentum 0.9.")
    learning_rate: float = Field(5e-4, gt=0)
    schedule: Literal["cosine", "step"] = Field("cosine", description="step: a tenth at each of `drops`.")
    drops: list[float] = Field(default_factory=list, description="Shares of the steps, of schedule step only.")
    least_learning_rate: float = Field(0.0, ge=0, description="Below which the schedule does not go.")
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps.")
    gradient_clipping: float = Field(5.0, ge=0, description="0 switches it off.")
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the student, e.g. 0.9998, which is kept in its place.",
    )

    @model_validator(mode="after")
    def drops_of_a_step_schedule(self) -> RecipeSection:
        if bool(self.drops) != (self.schedule == "step"):
            raise ValueError(f"has schedule {self.schedule} and drops {self.drops}; step needs drops, cosine has none")
        if self.drops != sorted(set(self.drops)) or not all(0 < drop < 1 for drop in self.drops):
            raise ValueError(f"has drops {self.drops}; allowed: shares of the steps from 0 to 1, each after the last")
        return self


class VisionDeepspeedSection(DeepspeedSection):
    stage: Literal[0, 1, 2, 3] = Field(1, description="ZeRO stage.")


class VisionConfig(Section):
    """A run of `kind: vision`."""

    kind: Literal["vision"]
    run: RunSection = Field(default_factory=lambda: RunSection())
    student: ClassifierSection
    teacher: ClassifierSection | None = None
    objectives: list[ObjectiveSection] = Field(
        default_factory=lambda: [ObjectiveSection(name="cross_entropy")], min_length=1
    )
    space: SpaceSection = Field(
        default_factory=lambda: SpaceSection(), description="In which logits teacher and student are compared."
    )
    data: LabelledSection
    recipe: RecipeSection
    training: TrainingSection = Field(default_factory=lambda: TrainingSection())
    deepspeed: VisionDeepspeedSection = Field(default_factory=lambda: VisionDeepspeedSection())

    @model_validator(mode="after")
    def whole_weights(self) -> VisionConfig:
        if self.recipe.optimizer == "lamb" and self.deepspeed.stage > 0:
            raise ValueError(
                "recipe.optimizer lamb scales the step of each layer by its norm, and ZeRO flattens layers into one; "
                "set deepspeed.stage to 0"
            )
        if self.recipe.average is not None and self.deepspeed.stage == 3:
            raise ValueError("recipe.average needs whole weights, which deepspeed.stage 3 cuts up; take stage 0 to 2")
        return self

    @property
    def stages(self) -> list[RecipeSection]:
        """The one part that the training has, under the name that runs of vision-language models use."""
        return [self.recipe]
