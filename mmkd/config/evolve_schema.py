"""The shape of the YAML of `mmkd evolve`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmkd.config.schema import Section, SourceSection
from mmkd.config.synthesis_schema import BlindTriesSection, ModelSection, SamplingSection


class DirectionsSection(Section):
    """Weights of the three evolutions; each item draws one anew in each round."""

    perceptual: float = Field(1.0, ge=0)
    cognitive: float = Field(1.0, ge=0)
    interaction: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def some(self) -> DirectionsSection:
        if self.perceptual + self.cognitive + self.interaction <= 0:
            raise ValueError("at least one of the three needs a weight above 0")
        return self


class EvolverSampling(SamplingSection):
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: int = Field(1500, ge=1, description="Of one version.")


class EvolverSection(Section):
    """Who writes the next versions."""

    kind: Literal["grounded", "llm"] = Field(
        "grounded",
        description="grounded: templates over what the tools see, for scenes. llm: a model that sees images.",
    )
    model: ModelSection | None = Field(
        None, description="Of llm: who writes. Of grounded: who puts its questions in other words; nobody by default."
    )
    sampling: EvolverSampling = Field(
        default_factory=lambda: EvolverSampling(),
        description="Of the model; the seed also draws everything else of the run.",
    )

    @model_validator(mode="after")
    def sees(self) -> EvolverSection:
        if self.kind == "llm" and (self.model is None or self.model.language is not None):
            raise ValueError("kind llm needs a model that sees images: endpoint or vlm")
        return self


class JudgeSampling(SamplingSection):
    max_tokens: int = Field(400, ge=1, description="Of one comparison.")


class JudgeSection(Section):
    """Who compares a version with its parent."""

    kind: Literal["tools", "model"] = Field(
        "tools", description="tools: by the executed steps, no model. model: a model that sees the image, both orders."
    )
    model: ModelSection | None = Field(None, description="Of kind model; better of another family than the evolver.")
    sampling: JudgeSampling = Field(default_factory=lambda: JudgeSampling())
    tolerance: float = Field(
        1.0, ge=0, le=9, description="Points of difficulty that a perceptual version may differ from its parent."
    )

    @model_validator(mode="after")
    def sees(self) -> JudgeSection:
        if (self.kind == "model") != (self.model is not None):
            raise ValueError("kind model needs a model, kind tools takes none")
        if self.model is not None and self.model.language is not None:
            raise ValueError("a judge has to see the image: endpoint or vlm")
        return self


class BlindSection(BlindTriesSection):
    """The test of visual independence: items answered without the image go."""

    max_tokens: int = Field(24, ge=1)


class ToolsSection(Section):
    """What the four functions of the visual chain are executed with."""

    detector: str = Field(
        "classical",
        description="classical (scenes; of no use on photographs), or a zero-shot detector: folder or hub id. To be "
        "named where evolver.kind is llm.",
    )
    names: list[str] = Field(
        default_factory=list, description="What a zero-shot detector looks for where a record brings no detections."
    )
    ocr: bool = Field(False, description="Offer ocr, read with rapidocr.")


class EvolveConfig(Section):
    """`mmkd evolve`: records whose questions grow in rounds (MMEvol)."""

    data: list[SourceSection] = Field(min_length=1, description="Seeds; as data.mixture, without weights.")
    out: str = Field(description="Folder: rounds, the stores of answers, records.jsonl, rejected.jsonl, card.md.")
    rounds: int = Field(3, ge=1, description="May be raised later; the rounds that are there are kept.")
    per_image: int | None = Field(None, ge=1, description="Questions taken of one record, drawn; all by default.")
    annotations: str | None = Field(
        None, description="JSONL with id, and caption and/or objects [{label, box: four numbers 0 to 1}], of records."
    )
    directions: DirectionsSection = Field(default_factory=lambda: DirectionsSection())
    evolver: EvolverSection = Field(default_factory=lambda: EvolverSection())
    tools: ToolsSection = Field(default_factory=lambda: ToolsSection())
    judge: JudgeSection = Field(default_factory=lambda: JudgeSection())
    blind: BlindSection | None = Field(
        description="the test of visual independence. blind: {model: ..} has that model answer without the image, and "
        "what it answers goes; blind: null leaves the test out."
    )
    reasks: int = Field(2, ge=0, description="How often a reply that is no answer is asked for again.")
    versions: Literal["newest", "all"] = Field(
        "newest", description="Records of each item's newest good version, or of all good versions, the seed included."
    )
    chain: bool = Field(False, description="Answers of cognitive versions tell their steps before the answer.")

    @model_validator(mode="after")
    def whole(self) -> EvolveConfig:
        if self.evolver.kind != "llm":
            return self
        if self.judge.kind != "model":
            raise ValueError(
                "evolver.kind is llm and judge.kind tools: by executed steps alone only the templates of kind grounded "
                "can be judged. Give judge: {kind: model, model: ..}, of a model that sees images"
            )
        if "detector" not in self.tools.model_fields_set:
            raise ValueError(
                "evolver.kind is llm and tools.detector is missing. Name a zero-shot detector, e.g. "
                "google/owlv2-base-patch16-ensemble with tools.names; or classical, for scenes of coloured shapes: it "
                "is of no use on photographs"
            )
        return self
