"""`mmkd programs check`: one program file, one picture, verdict and trace."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.images import open_image
from mmkd.errors import DataError
from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.container import container
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.making.seeing import open_backends
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.rationale import tell
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.rules import MOST_SOURCE
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.visible import visible


def check_file(file: Path, image: Path, question: str = "", config: ProgramsConfig | None = None) -> Outcome:
    """Run the program in a file in the sandbox.

    Args:
        config: of whose `tools`, `limits` and `container` sections the run is; the classical back end by default.

    Raises: DataError where the file or the image cannot be read; ConfigError for tools that cannot be had; what kept a
        model from being asked.
    """
    source, picture = _source(file), open_image(str(image))
    with ExitStack() as stack:
        if config is None:
            runner = stack.enter_context(Runner(executor=MontyExecutor(workers=1)))
            return runner.run(source, picture, question)
        # What models answer is not kept: the config's own folder may be in use.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmkd-check-"))
        backends, troubles = stack.enter_context(open_backends(config.tools, Path(folder)))
        command = container(config.container) if config.container else None
        executor = MontyExecutor(workers=1, command=command)
        runner = Runner(backends, Limits.of(config.limits), executor, config.tools.names)
        outcome = stack.enter_context(runner).run(source, picture, question)
        if troubles:
            raise troubles[0]
        return outcome


def in_words(outcome: Outcome) -> str:
    """Verdict, trace and answer for a terminal."""
    said = [f"{outcome.verdict}" + (f": {outcome.reason}" if outcome.reason else "")]
    said += [f"  {line}" for line in outcome.message.splitlines()]
    for event in outcome.events:
        arguments = ", ".join(f"{name}={value!r}" for name, value in event.arguments.items())
        boxes = "".join(f" {list(part.box)}" for part in event.found)
        said.append(f"  {event.call} {event.tool}({arguments}) = {event.result!r}{boxes}")
    if outcome.verdict is Verdict.RAN:
        said += [f"answer: {as_text(outcome.answer)}", f"told: {tell(outcome.events, outcome.answer)}"]
    return "\n".join(map(visible, said))


def _source(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(4 * MOST_SOURCE + 4)  # as many bytes as characters that are read can have
        return data.decode("utf-8")
    except OSError as error:
        raise DataError(f"program {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"program {file} is no UTF-8 text (byte {error.start}).") from error
