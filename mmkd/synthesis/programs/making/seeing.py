"""From a config's tools section to the back ends that tools see with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from mmkd.config.programs_schema import ToolsSection
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.paid import Purse
from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.backends.classical import ClassicalAsker, ClassicalDetector
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling, Status

MOST_TOKENS = 48  # of what a model answers a tool


class ModelTool:
    """A model behind `query` or `knowledge`, through a store: the same question about the same pixels is asked once.

    Attributes:
        troubles: what kept it from asking. That says nothing of the program, so the run has to end.
    """

    def __init__(self, asker: Asker, troubles: list[Exception]):
        self.asker, self.troubles = asker, troubles

    def ask(self, image: Image.Image, question: str) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return self._answer(question, (buffer.getvalue(),))

    def know(self, question: str) -> str:
        return self._answer(question, ())

    def _answer(self, question: str, images: tuple[bytes, ...]) -> str:
        template = prompt("tool_query")
        turns = template.render(question=" ".join(question.split()))
        sampling = Sampling(max_tokens=MOST_TOKENS)
        request = Request("tool", turns, images, sampling, may_be_cut=True, prompt=str(template))
        try:
            [answer] = self.asker.answer([request])
        except Exception as error:
            self.troubles.append(error)
            raise
        if answer.status is Status.UNANSWERED:  # may come the next time; nothing is told of it
            trouble = DataError(
                f"{self.asker.backend.model}, which tools ask, gave no reply: {answer.reason}. All so far is kept; run "
                "again to go on."
            )
            self.troubles.append(trouble)
            raise trouble
        if not answer.done:
            raise Stop(Reason.TOOL_ERROR, f"the model gave no answer: {answer.reason[:200]}")
        return answer.text


@contextmanager
def open_backends(
    section: ToolsSection, folder: Path, purse: Purse | None = None
) -> Iterator[tuple[Backends, list[Exception]]]:
    """Back ends, and a list that fills with what kept them from working; their models' answers are kept in `folder`.

    Args:
        purse: of the job whose tools they are; see `open_asker`.

    Raises: ConfigError where one of them is not installed or cannot be loaded.
    """
    troubles: list[Exception] = []
    with ExitStack() as stack:

        def model(kind: str) -> ModelTool | None:
            chosen = getattr(section, kind)
            if chosen is None:
                return None
            if chosen.fleet is not None:
                raise ConfigError(f"tools.{kind}.fleet: a tool is asked one question at a time; leave fleet out.")
            return ModelTool(stack.enter_context(open_asker(chosen, folder / kind, purse=purse)), troubles)

        classical = ClassicalDetector() if section.detector == "classical" else None
        query, knowledge = model("query"), model("knowledge")
        yield (
            Backends(
                detect=classical or _detector(section.detector),
                ask=query.ask if query else ClassicalAsker(classical) if classical else None,
                read=_reader() if section.ocr else None,
                depth=_depth(section.depth) if section.depth else None,
                know=knowledge.know if knowledge else None,
            ),
            troubles,
        )


def _detector(model: str):
    from mmkd.synthesis.programs.backends.detection import ZeroShotDetector

    return ZeroShotDetector(model)


def _depth(model: str):
    from mmkd.synthesis.programs.backends.depth import DepthModel

    return DepthModel(model)


def _reader():
    from mmkd.synthesis.programs.backends.text import TextReader

    return TextReader()
