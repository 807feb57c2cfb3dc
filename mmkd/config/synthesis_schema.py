"""The shape of the YAML of `mmkd answer` and `mmkd select`, and of the models that engines ask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.config.schema import SourceSection
from mmkd.config.sections import OpenSection, Section


class LanguageModelSection(Section):
    """A decoder in this process; it reads no images."""

    source: str = Field(description="As student.language.source, e.g. gguf:smollm2-135m.")
    batch_size: int = Field(8, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class VlmSection(Section):
    """A vision-language model in this process."""

    model: str = Field(description="Release, model folder, run folder or hub id.")
    tokens: int | Literal["full"] | None = Field(None, description="Tokens an image is read as; the model's own.")
    batch_size: int = Field(8, ge=1)
    license: str | None = Field(None, description="Of what the model writes.")


class FleetSection(Section):
    """Ray's workers, each with the model (or connections to its servers) of its own."""

    workers: int = Field(ge=1, description="At most so many at once; fewer where the cluster has no room.")
    gpus: float = Field(0.0, ge=0, description="Of each worker.")
    cpus: float = Field(1.0, gt=0, description="Of each worker.")
    batch: int | None = Field(
        None, ge=1, description="Requests that a worker takes at once; 32 for each call that keeps the model busy."
    )


class ModelSection(Section):
    """Who is asked: one of endpoint, language, vlm; by this process, or by a fleet."""

    endpoint: EndpointSection | None = None
    language: LanguageModelSection | None = None
    vlm: VlmSection | None = None
    fleet: FleetSection | None = Field(None, description="Ask through Ray Data, here or on a cluster.")

    @model_validator(mode="after")
    def one(self) -> ModelSection:
        if sum(part is not None for part in (self.endpoint, self.language, self.vlm)) != 1:
            raise ValueError("needs exactly one of endpoint, language, vlm")
        return self


class SamplingSection(Section):
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1, description="Of one answer.")
    seed: int = Field(0, ge=0, lt=2**31)


class BlindTriesSection(Section):
    """Who is asked without the image, and how often."""

    model: ModelSection = Field(description="Any model; it is shown no image.")
    tries: int = Field(3, ge=1, description="Answers drawn; an item goes if all are right.")
    temperature: float = Field(1.0, ge=0, le=2)

    @model_validator(mode="after")
    def drawn(self) -> BlindTriesSection:
        if self.tries > 1 and self.temperature == 0:
            raise ValueError("more than one try needs a temperature above 0")
        return self


class AnswerConfig(Section):
    """`mmkd answer`: the questions of records, answered by a model."""

    model: ModelSection
    data: list[SourceSection] = Field(min_length=1, description="As data.mixture, without weights.")
    out: str = Field(description="Folder: the answers' store, records.jsonl, rejected.jsonl.")
    sampling: SamplingSection = Field(default_factory=lambda: SamplingSection())
    reasks: int = Field(2, ge=0, description="How often a reply that is no answer is asked for again.")
    may_be_cut: bool = Field(False, description="Keep answers that ran into max_tokens.")
    system: str | None = Field(None, description="A system turn before every chat, in the place of the record's own.")


class SelectorSection(OpenSection):
    name: str = Field(description="near_duplicates, image_need, quantization, balance, or one of a plug-in.")


class SelectConfig(Section):
    """`mmkd select`: which records stay."""

    data: list[SourceSection] = Field(min_length=1, description="As data.mixture, without weights.")
    select: list[SelectorSection] = Field(min_length=1, description="In order; each sees what the ones before kept.")
    out: str = Field(description="Folder: records.jsonl, rejected.jsonl.")
    seed: int = Field(0, ge=0)
