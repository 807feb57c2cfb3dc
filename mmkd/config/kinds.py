"""The kinds of YAML that mmkd's jobs read."""

from __future__ import annotations

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.judge_schema import JudgeConfig
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.config.schema import Config
from mmkd.config.sections import Section
from mmkd.config.synthesis_schema import AnswerConfig, SelectConfig
from mmkd.config.vision_schema import VisionConfig

KINDS: dict[str, type[Section]] = {
    "train": Config,  # train, distill, cache
    "vision": VisionConfig,  # kind: vision
    "answer": AnswerConfig,
    "select": SelectConfig,
    "compete": CompeteConfig,
    "evolve": EvolveConfig,
    "programs": ProgramsConfig,
    "judge": JudgeConfig,
}
