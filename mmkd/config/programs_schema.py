"""The shape of the YAML of `mmkd programs`: who writes programs, what their tools see with, which of them count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmkd.config.schema import Section, SourceSection
from mmkd.config.synthesis_schema import ModelSection, SamplingSection


class ToolsSection(Section):
    names: list[str] | None = Field(None, description="Only these tools; all that can be served by default.")
    detector: str = Field("classical", description="classical, or a zero-shot detection model by folder or hub id.")
    depth: str | None = Field(None, description="Depth model by folder or hub id.")
    ocr: bool = Field(False, description="Read text with rapidocr.")
    query: ModelSection | None = Field(None, description="Who answers questions about parts of images; reads images.")
    knowledge: ModelSection | None = Field(None, description="Who answers questions without an image.")


class ContainerSection(Section):
    """Sandbox workers in containers, one container a worker."""

    image: str = Field(
        description="Local image with `monty` on its PATH: of pydantic-monty, in this machine's version."
    )
    engine: Literal["docker", "podman"] = "docker"
    memory: int = Field(512, ge=64, description="MiB of one container.")
    cpus: float = Field(1.0, gt=0, description="Of one container.")


class LimitsSection(Section):
    """What one program may use; going over one of these ends that program and nothing else."""

    seconds: float = Field(2.0, gt=0, le=50, description="Of computing in the sandbox, without tools.")
    wall_seconds: float = Field(60.0, gt=0, description="From start to end, tools included; looked at between calls.")
    memory: int = Field(64, ge=1, le=512, description="MiB of a program's values.")
    recursion: int = Field(50, ge=1, le=200, description="Depth of calls.")
    tool_calls: int = Field(32, ge=1, description="Calls of any tool.")
    model_calls: int = Field(8, ge=0, description="Of these, calls of tools that ask a model: query, knowledge.")
    output: int = Field(
        10_000, ge=100, description="Bytes of an answer, of all that is printed, and of one tool's arguments."
    )


class InventSection(Section):
    """New questions about the images of data, proposed by the writer, with the answer that its programs agree on."""

    questions: int = Field(100, ge=1, description="Proposals asked for; what is a new question among them is kept.")
    images: int = Field(8, ge=3, description="Pictures that each new question is asked of.")
    agree: int = Field(2, ge=2, description="Different programs that have to give an answer, and more than any other.")


class WritingSection(SamplingSection):
    temperature: float = Field(0.5, ge=0, le=2)
    max_tokens: int = Field(160, ge=1, description="Of one program.")
    constrained: bool = Field(
        False, description="Draw only tokens that lead to a program of the tools' grammar; endpoints need `grammar`."
    )


class TuneSection(Section):
    """How the writer is tuned between rounds, always from its first weights."""

    rounds: int = Field(1, ge=1, description="How often; the programs are written once more than that.")
    steps: int = Field(200, ge=1, description="Optimiser steps.")
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    examples: int | None = Field(
        None,
        ge=0,
        description="Examples in the prompts that it learns and later writes from, if not as many as at first; fewer "
        "make both cheaper.",
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Train low-rank adapters, merged in the end; else all weights."
    )
    save_every: int = Field(50, ge=1, description="Steps; the most that a kill can lose.")
    seed: int = Field(0, ge=0)


class AgainSection(Section):
    """Questions without a verified program are asked again, with programs that held for others as examples."""

    times: int = Field(1, ge=1, description="How often; each time with what has held by then.")
    examples: int = Field(5, ge=1, description="Examples in the prompt, the most alike of ours and of those.")
    most: int = Field(500, ge=1, description="Programs that held, to choose from; drawn where there are more.")


class ProgramsConfig(Section):
    """`mmkd programs`: programs sampled for each question, those that hold, and their rationales as records."""

    writer: ModelSection = Field(description="Who writes the programs.")
    data: list[SourceSection] = Field(min_length=1, description="As data.mixture, without weights; one image a record.")
    out: str = Field(description="Folder: records.jsonl, programs.jsonl, yield.json, rejected.jsonl, and the stores.")
    samples: int = Field(5, ge=1, le=64, description="Programs for a question that has an answer; else one, greedy.")
    sampling: WritingSection = Field(
        default_factory=lambda: WritingSection(), description="Of one program; sample n has the seed plus n."
    )
    examples: int = Field(5, ge=0, description="Examples in the prompt, the most alike.")
    again: AgainSection | None = Field(
        None, description="Ask questions without a verified program again, with what held for others as examples."
    )
    tools: ToolsSection = Field(default_factory=lambda: ToolsSection())
    limits: LimitsSection = Field(default_factory=lambda: LimitsSection())
    choices: list[str] = Field(
        ["yes", "no"],
        description="Answers that could be guessed: two programs have to agree; so do all choices that a row offers.",
    )
    soft_accuracy: float = Field(
        0.5,
        gt=0,
        le=1,
        description="VQA soft accuracy from which an answer is right, where a row has the answers of several people.",
    )
    controls: int = Field(
        8, ge=0, description="Other rows' pictures, beside a blank one, on which a right program may answer otherwise."
    )
    right_elsewhere: float = Field(
        0.6, ge=0, le=1, description="Least share of the rows with the same question that a program has to get right."
    )
    luck: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="A program whose guessable answer no second one gives holds where it is right on all rows with its "
        "question and the chance of that by luck is at most this; 0: never.",
    )
    judge: ModelSection | None = Field(
        None,
        description="Who says whether an answer is the label in other words; asked only where neither is a number, "
        "a yes or no, or a choice. Nobody by default.",
    )
    rationales: ModelSection | None = Field(None, description="Who words the rationales; a template by default.")
    boxes: bool = Field(True, description="Place what a rationale names by its box; without, rationales are shorter.")
    invent: InventSection | None = Field(
        None, description="Ask new questions about the images of data, in the place of its own."
    )
    tune: TuneSection | None = Field(None, description="Tune the writer on its verified programs and write again.")
    container: ContainerSection | None = Field(None, description="Run programs in containers; in processes by default.")
    workers: int = Field(2, ge=1, description="Programs that run at once.")
    seed: int = Field(0, ge=0, description="Of the choice of control pictures.")

    @model_validator(mode="after")
    def tunable(self) -> ProgramsConfig:
        if self.tune is not None and self.writer.language is None:
            raise ValueError("tune needs a writer of this process: writer.language")
        if self.tune is not None and self.invent is not None:
            raise ValueError("tune and invent go one after the other: a tuned writer writes programs, not questions")
        return self

    @model_validator(mode="after")
    def asked_again(self) -> ProgramsConfig:
        if self.again is not None and self.invent is not None:
            raise ValueError("again and invent do not go together: an invented question without a program is dropped")
        return self

    @model_validator(mode="after")
    def judged_here(self) -> ProgramsConfig:
        if self.judge is not None and self.invent is not None:
            raise ValueError("judge and invent do not go together: an invented question has no label to compare with")
        if self.judge is not None and self.judge.fleet is not None:
            raise ValueError("judge.fleet: answers are judged one at a time, as programs run; leave fleet out")
        return self

    @model_validator(mode="after")
    def constrainable(self) -> ProgramsConfig:
        if self.sampling.constrained and self.writer.endpoint is not None and self.writer.endpoint.grammar is None:
            raise ValueError("sampling.constrained needs writer.endpoint.grammar: vllm, sglang or llama_cpp")
        return self
