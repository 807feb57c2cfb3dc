"""The shape of a run's YAML. One class per concern; unknown keys are errors.

Objectives, teachers and data sources have open sets of options: their `name`/`kind`/`source` picks an entry of a
registry, and the other keys are checked against that entry's own options when the config is resolved.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.config.sections import OpenSection, Section

# A number keeps the first n layers, a list those named, "every n" layers 0, n, 2n and so on.
Keep = int | list[int] | Annotated[str, StringConstraints(pattern=r"^every [1-9][0-9]*$")]


class RunSection(Section):
    dir: str = Field("runs/unnamed", description="Run folder; everything the run writes lies below it.")
    seed: int = Field(0, ge=0, description="Seed of initialisation, data order and sampled token counts.")


class VisionSection(Section):
    source: str = Field(description="Vision tower, as source:name@revision, e.g. timm:vit_small_patch14_dinov2.")
    image_size: int | None = Field(None, ge=8, description="Side in pixels; the model's own by default.")
    taps: list[int] | None = Field(
        None, description="Stages (CNN) or layers (ViT, negative from the end) to read; concatenated on channels."
    )
    grid: tuple[int, int] | None = Field(None, description="Rows and columns to which the features are pooled.")
    standardize: bool = Field(
        False, description="Bring every channel of the tower to mean 0 and deviation 1, measured before training."
    )
    tiles: int = Field(1, ge=1, description="Largest number of any-resolution tiles an image is cut into.")
    pretrained: bool = Field(True, description="False builds the tower with random weights.")


class ProjectorSection(Section):
    kind: Literal["linear", "mlp", "pixel_shuffle", "average_pool", "resampler"] = "mlp"
    layers: int = Field(2, ge=1, description="Linear layers of the MLP.")
    factor: int = Field(2, ge=1, description="Side of the square merged by pixel_shuffle and average_pool.")
    queries: int = Field(64, ge=1, description="Learned queries of the resampler.")
    heads: int = Field(8, ge=1, description="Attention heads of the resampler.")


class LanguageSection(Section):
    source: str = Field(description="Decoder, as source:name@revision, e.g. gguf:smollm2-135m.")
    keep_layers: Keep | None = Field(
        None, description="Layers kept: a number keeps the first n, a list exactly those, `every 2` layers 0, 2, 4 ..."
    )
    pretrained: bool = True


class VocoSection(Section):
    tokens: int = Field(1, ge=1, description="Compression tokens per image, k; the largest that can be served.")
    preset: Literal["keep_sink", "faithful"] = Field(
        "keep_sink",
        description="keep_sink lets text see the first token; faithful hides it, as the released code does.",
    )
    embeddings: Literal["shared", "separate"] = Field(
        "separate", description="One embedding for all C tokens, or one each."
    )
    pooled: bool = Field(
        False,
        description="Add the mean of an image's vision tokens to its C tokens, so that text reads the image from the "
        "first layer on; without it, from the second.",
    )
    mass_bias: bool = Field(False, description="Learn a bias on the attention scores of each C token.")


class StudentSection(Section):
    init: str | None = Field(
        None, description="Start from a composed model folder; the parts below then only override voco and cuts."
    )
    vision: VisionSection | None = None
    projector: ProjectorSection = Field(default_factory=lambda: ProjectorSection())
    language: LanguageSection | None = None
    voco: VocoSection | None = None
    keep_layers: Keep | None = Field(None, description="With init: language layers kept of the model in init.")
    template: str = Field(
        "default",
        description="default (the tokenizer's own), plain (question, answer, end token), qa (Q:/A: turns), chatml, or "
        "a path to a jinja file.",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="Of the decoder, and of a live teacher's."
    )

    @model_validator(mode="after")
    def whole(self) -> StudentSection:
        if self.init is None and (self.vision is None or self.language is None):
            raise ValueError("needs vision and language, or init with the folder of a composed model")
        if self.init is not None and (self.vision is not None or self.language is not None):
            raise ValueError("init already brings vision and language; remove one of them")
        if self.init is not None and self.projector != ProjectorSection():
            raise ValueError("init already brings a projector; remove projector")
        if self.init is None and self.keep_layers is not None:
            raise ValueError("keep_layers is of the model in init; write language.keep_layers")
        return self


class SourceSection(OpenSection):
    source: str = Field(description="easyvqa, scenes, llava_json, jsonl, parquet, preferences or datasets.")
    weight: float | None = Field(
        None, gt=0, description="Share in the mixture, for all sources or none; by default the source's size."
    )


class TeacherSection(OpenSection):
    kind: str = Field(
        "live",
        description="live (another model), cached (what mmkd cache kept of one) or shared (the student itself with "
        "full vision, adapters off).",
    )
    model: str | None = Field(None, description="Folder or hub id of the teacher; not for shared.")
    store: str | None = Field(None, description="Folder of a cached teacher's answers.")
    quantize: Literal["nf4", "int8"] | None = Field(
        None, description="Bits of a live teacher's decoder layers (bitsandbytes), or of the one that mmkd cache asks."
    )
    zero3: bool = Field(
        False,
        description="Cut a live teacher's weights up over the ranks, in a ZeRO-3 engine of its own that gathers them "
        "layer by layer; without it every rank holds them all.",
    )
    endpoint: EndpointSection | None = Field(
        None, description="A server whose own answers and log-probs mmkd cache keeps, in the place of `model`."
    )
    validation: list[SourceSection] | None = Field(
        None,
        description="Of a cached teacher: rows it was not trained on, as data.mixture, on which the sharpness of its "
        "top k is chosen (FIRST).",
    )


class ObjectiveSection(OpenSection):
    name: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class RationalesSection(Section):
    """Train on the rationales of records beside their answers."""

    mode: Literal["separate", "answer_first", "rationale_first"] = Field(
        "separate", description="Two chats a row; or one, in which the rationale follows, or stands before, the answer."
    )
    weight: float = Field(1.0, ge=0, description="lambda, of a rationale's mean loss beside an answer's.")


class DataSection(Section):
    mixture: list[SourceSection] = Field(min_length=1)
    max_length: int = Field(2048, ge=8, description="Tokens of a row, image tokens included.")
    packing: bool = Field(False, description="Put several samples in one row, isolated from each other.")
    images_per_row: int = Field(8, ge=1, description="Most images in one packed row.")
    rationales: RationalesSection | None = Field(
        None, description="Train on rationales too; answers and rationales then each count by their own mean loss."
    )
    cache_features: bool = Field(False, description="Compute a frozen tower's features once and keep them on disk.")
    workers: int = Field(0, ge=0)


class LoraSection(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get adapters; all but the head by default."
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="Keep the decoder's layers in 4 bits while the stage trains adapters beside them (QLoRA); the "
        "stage exports them as they were, adapters merged in.",
    )


class OnPolicySection(Section):
    share: float = Field(0.25, gt=0, le=1, description="Share of the steps at which the student answers itself.")
    max_new_tokens: int = Field(64, ge=1, description="Most tokens of an answer.")
    temperature: float = Field(1.0, gt=0, description="Of the sampling.")


Part = Literal["vision", "projector", "language", "embeddings", "voco"]


class StageSection(Section):
    """One part of the training: what is trained, how long, how fast."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Also of the folder of its checkpoints: letters, digits, _.-",
    )
    steps: int = Field(ge=1, description="Optimiser steps.")
    trainable: list[Part] = Field(
        ["projector", "language", "embeddings", "voco"],
        description="Parts that learn; the others are frozen. language: the decoder's layers and norms; embeddings: "
        "its token embeddings and head.",
    )
    lora: LoraSection | None = Field(
        None,
        description="Train low-rank adapters of the language model instead of its weights (merged when the stage "
        "ends). Its token embeddings learn as long as `trainable` names them.",
    )
    learning_rate: float = Field(1e-4, gt=0)
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Rates of parts that differ, e.g. {voco: 5.0e-3}; language is that of `lora` where it is given.",
    )
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of the steps.")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    batch_size: int = Field(8, ge=1, description="Rows of one optimiser step, over all ranks and accumulation.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Rows of one forward on one rank; batch_size/ranks by default."
    )
    gradient_clipping: float = Field(1.0, ge=0, description="0 switches it off.")
    read: list[Annotated[int, Field(ge=1)] | Literal["full"]] = Field(
        ["full"],
        min_length=1,
        description="Token counts that a step may read the image with; each step draws `reads` of them.",
    )
    read_weights: list[float] | None = Field(None, description="Chance of each entry of `read`; equal by default.")
    reads: int = Field(1, ge=1, description="Different counts read in one step, sharing the encode pass.")
    progressive: bool = Field(
        False,
        description="Start with the first entry of `read` alone; the others join in their order, evenly spread.",
    )
    on_policy: OnPolicySection | None = Field(
        None,
        description="At a share of the steps, put the student's own answers in the place of the data's; only "
        "objectives that read the teacher on them are then applied.",
    )
    objectives: list[ObjectiveSection] | None = Field(None, description="Overrides the run's objectives in this stage.")

    @model_validator(mode="after")
    def consistent(self) -> StageSection:
        if len(set(self.read)) != len(self.read):
            raise ValueError(
                f"has read {self.read}, which names a count twice; use read_weights to draw one more often"
            )
        weights = self.read_weights
        if weights is not None and (len(weights) != len(self.read) or min(weights) < 0 or sum(weights) == 0):
            raise ValueError(
                f"has read_weights {weights}; allowed: a number from 0 for each of the {len(self.read)} entries of "
                "read, not all 0"
            )
        learns = {*self.trainable, *(["language"] if self.lora else [])}
        if frozen := [part for part in self.learning_rates if part not in learns]:
            raise ValueError(
                f"has learning_rates of {', '.join(frozen)}, which it does not train; name it in trainable or leave "
                "its rate out"
            )
        entries = len(self.read) if weights is None else sum(weight > 0 for weight in weights)
        if self.reads > entries:
            raise ValueError(f"has reads {self.reads}, and read has {entries} entries to draw from")
        if self.progressive and weights is not None and not weights[0]:
            raise ValueError(
                f"is progressive, and read_weights {weights} never draw {self.read[0]}, which it starts with"
            )
        return self


Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainingSection(Section):
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="auto: bf16 where the device multiplies it in hardware, else fp32; a resumed run keeps its own.",
    )
    activation_checkpointing: bool = False
    log_every: int = Field(10, ge=1)
    save_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    trackers: list[Tracker] = Field(default_factory=list, description="Where metrics go beside metrics.jsonl.")
    device: Literal["auto", "cpu", "cuda"] = "auto"


class DeepspeedSection(Section):
    stage: Literal[0, 1, 2, 3] = Field(2, description="ZeRO stage.")
    offload: Literal["none", "cpu"] = "none"
    config: dict[str, Any] = Field(default_factory=dict, description="Further DeepSpeed keys, merged in last.")


class EvaluateSection(Section):
    suite: str = Field("easyvqa", description="Folder name below eval_suites, or a path.")
    tokens: list[int | Literal["full"]] = Field(["full"], description="Token counts to score.")
    limit: int | None = Field(None, ge=1, description="Score only the first n questions.")
    batch_size: int = Field(64, ge=1)
    blind: bool = Field(False, description="Also score without the image.")


class Config(Section):
    """A whole run."""

    run: RunSection = Field(default_factory=lambda: RunSection())
    student: StudentSection
    teacher: TeacherSection | None = None
    objectives: list[ObjectiveSection] = Field(default_factory=lambda: [ObjectiveSection(name="cross_entropy")])
    data: DataSection
    stages: list[StageSection] = Field(min_length=1)
    training: TrainingSection = Field(default_factory=lambda: TrainingSection())
    deepspeed: DeepspeedSection = Field(default_factory=lambda: DeepspeedSection())
    evaluate: EvaluateSection = Field(
        default_factory=lambda: EvaluateSection(), description="What `mmkd eval RUN` does unless its options say other."
    )

    @model_validator(mode="after")
    def stages_that_can_be(self) -> Config:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"stages has two of the name {twice}, and a stage's folder has its name; rename one")
        for stage in self.stages:
            if self.data.cache_features and "vision" in stage.trainable:
                raise ValueError(
                    f"stage {stage.name} trains vision, whose features change; switch data.cache_features off"
                )
        return self
