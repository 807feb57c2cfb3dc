"""The shape of the YAML of `mmkd judge`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmkd.config.schema import SourceSection
from mmkd.config.sections import Section
from mmkd.config.synthesis_schema import ModelSection


class GraderSection(Section):
    """A judge that gives reasons."""

    model: ModelSection
    max_tokens: int = Field(400, ge=1, description="Of one verdict.")


class JudgeConfig(Section):
    """`mmkd judge records`, `mmkd judge calibrate`: what a local judge learns from, and how far it can be trusted."""

    data: list[SourceSection] = Field(min_length=1, description="Questions with right answers; as data.mixture.")
    out: str = Field(description="Folder: records.jsonl, rejected.jsonl, calibration.json, what models said.")
    wrong: int = Field(1, ge=0, description="Wrong answers to each question, taken from questions of its kind.")
    answers: list[str] = Field(
        default_factory=list,
        description="records.jsonl of mmkd answer over the same data: a model's answers, graded too.",
    )
    teacher: GraderSection | None = Field(
        None,
        description="Grades the models' answers, shown the right one; its score and the label's are averaged. The "
        "label alone by default.",
    )
    hold_out: float = Field(0.1, gt=0, lt=1, description="Share of the pictures that is kept for calibrate.")
    most: int | None = Field(
        None, ge=1, description="Most held-out answers that calibrate has graded, drawn by the seed."
    )
    model: ModelSection | None = Field(None, description="The judge, for calibrate.")
    form: Literal["digit", "words"] = Field(
        "digit",
        description="digit: a judge that learned from these records. words: one that gives reasons and compares two "
        "answers in both orders, as mmkd compete asks it by default.",
    )
    expected: bool = Field(
        True, description="Of form digit: scores are expectations over the grade's tokens; else the grade as said."
    )
    max_tokens: int = Field(400, ge=1, description="Of form words: of one verdict.")
    seed: int = Field(0, ge=0)
