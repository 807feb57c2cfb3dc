"""From a config to what rounds are made with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from mmkd.config.evolve_schema import EvolveConfig, ToolsSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.blind import BlindTest
from mmkd.synthesis.evolving.elimination import ModelJudge, ParentJudge, ToolsJudge
from mmkd.synthesis.evolving.executing import shares
from mmkd.synthesis.evolving.grounded.evolver import Grounded
from mmkd.synthesis.evolving.grounded.reword import Rewording
from mmkd.synthesis.evolving.items import Box
from mmkd.synthesis.evolving.llm import ModelEvolver
from mmkd.synthesis.evolving.outcomes import Evolver
from mmkd.synthesis.evolving.rounds import Round
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.paid import Purse, purse_of
from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.reasons import Stop
from mmkd.synthesis.programs.tools import Toolset, View
from mmkd.synthesis.requests import Sampling

REWORD_TOKENS = 64
ROLES = ("evolver", "judge", "blind")
SETTINGS = "settings.json"  # of the run that began the folder


class Parts:
    """Models, tools and tests of a run; closes what it opened: `with Parts(..) as parts`."""

    def __init__(self, config: EvolveConfig, out: Path):
        self.config, self.out = config, out
        self._stack = ExitStack()
        self._askers: dict[tuple[Path, str], Asker] = {}
        self._purses: dict[Path, Purse] = {}
        begun = out / SETTINGS
        self._places = places(json.loads(begun.read_text()) if begun.exists() else config.model_dump(mode="json"))
        self.console = Console(stderr=True)
        self.backends = backends(config.tools)
        self.tools = Toolset(self.backends)

    def __enter__(self) -> Parts:
        try:
            blind = self.config.blind
            test = (
                BlindTest(self._asker("blind", blind.model), blind, self.config.evolver.sampling.seed)
                if blind
                else None
            )
            self.round = Round(self._evolver(), self.tools, self._judge(), test, self.config.judge.tolerance)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for asker in self._askers.values():
            self.console.print(asker.tally.table(asker.backend.model))
        self._stack.close()

    def view(self, image: Image.Image) -> View:
        return View(image, self.backends)

    def objects(self, view: View) -> list[tuple[str, Box]]:
        """What the tools find: all that the classical detector knows, or `tools.names`."""
        names: Iterable[str] = ("thing",) if self.config.tools.detector == "classical" else self.config.tools.names
        found = []
        for name in names:
            try:
                found += [(one.label, shares(one.box, view)) for one in view.things(view.whole, name)]
            except Stop:  # nothing of that name, for all that this detector can tell
                continue
        return found

    def identities(self) -> dict[str, str]:
        """Who did what, for the card."""
        evolver, judge, blind = self.config.evolver, self.config.judge, self.config.blind
        wrote = self._asker("evolver", evolver.model).backend.model if evolver.model else "the templates alone"
        named = {"evolver": f"{evolver.kind}, {wrote}" if evolver.kind == "grounded" else wrote}
        named["judge"] = self._asker("judge", judge.model).backend.model if judge.model else "the executed steps"
        named["tools"] = self.config.tools.detector + (" and ocr" if self.config.tools.ocr else "")
        named["without the image"] = self._asker("blind", blind.model).backend.model if blind else "not tested"
        return named

    def progress(self, line: str) -> None:
        self.console.print(line)

    def _evolver(self) -> Evolver:
        section = self.config.evolver
        sampling = Sampling(**section.sampling.model_dump())
        if section.kind == "grounded":
            short = replace(sampling, max_tokens=min(sampling.max_tokens, REWORD_TOKENS))
            rewording = Rewording(self._asker("evolver", section.model), short) if section.model else None
            return Grounded(sampling.seed, rewording)
        assert section.model is not None
        return ModelEvolver(self._asker("evolver", section.model), sampling, self.tools)

    def _judge(self) -> ParentJudge:
        section = self.config.judge
        if section.model is None:
            return ToolsJudge()
        sampling = Sampling(**section.sampling.model_dump())
        return ModelJudge(self._asker("judge", section.model), sampling, self.config.chain)

    def _asker(self, role: str, section: ModelSection) -> Asker:
        """One for all roles of equal sections whose replies lie together: the model is loaded once. What lies together
        is held against the budget of each of its roles. Two servers may call their models alike, so the name alone
        makes no two sections one."""
        folder = self.out / "answers" / self._places[role]
        key = folder, section.model_dump_json()
        if key not in self._askers:
            store = next((asker.store.again() for (at, _), asker in self._askers.items() if at == folder), folder)
            if folder not in self._purses:
                self._purses[folder] = purse_of(folder)
            purse = self._purses[folder]
            self._askers[key] = self._stack.enter_context(
                open_asker(section, store, self.config.reasks, all_replied=True, purse=purse)
            )
        return self._askers[key]


def places(settings: dict[str, Any]) -> dict[str, str]:
    """Where the replies of each role lie: with those of the first role of an equal section.

    Args:
        settings: as JSON, of the run that began the folder: how an endpoint is reached may have changed since.
    """
    sections = {role: (settings.get(role) or {}).get("model") for role in ROLES}
    return {role: next(one for one in ROLES if sections[one] == sections[role]) for role in ROLES}


def backends(section: ToolsSection) -> Backends:
    """Raises ConfigError for a detector or an ocr that cannot be had."""
    if section.detector == "classical":
        found = classical()
    else:
        from mmkd.synthesis.programs.backends.detection import ZeroShotDetector  # torch

        found = Backends(detect=ZeroShotDetector(section.detector))
    if section.ocr:
        from mmkd.synthesis.programs.backends.text import TextReader

        found = replace(found, read=TextReader())
    return found
