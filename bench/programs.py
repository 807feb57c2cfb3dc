"""What visual programs cost, and how many verified ones are false: `python -m bench.programs JOB`.

    python -m bench.programs throughput                 # programs a second through the sandbox; on an idle machine
    python -m bench.programs memory                     # of the parent, over 100,000 programs
    python -m bench.programs forward MODEL RUN          # a student's answer against running its program; likewise
    python -m bench.programs false_accepts RUN          # verified programs on new scenes (false_accepts.py)
    python -m bench.programs writing                    # samples of a writer, free and held to the grammar (writing.py)

Throughput and memory run through the real Runner: check, sandbox, tool server, trace, as many programs at once as
there are workers. RUN is the folder of a finished `mmkd programs` on scenes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image

from bench.false_accepts import accepted, shares, try_elsewhere
from bench.rows import RESULTS, Row, append, config_hash, surroundings
from bench.token_losses import Figure, status_bytes
from bench.writing import writing_figures
from mmkd.config.programs_schema import ToolsSection
from mmkd.config.synthesis_schema import VlmSection
from mmkd.data.images import open_image, read_image
from mmkd.data.record_files import jsonl
from mmkd.data.records import Turn
from mmkd.data.scenes import scenes
from mmkd.errors import DataError
from mmkd.synthesis.backends import Call
from mmkd.synthesis.programs.backends.base import Backends, Detection
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.making.seeing import open_backends
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.requests import Completion, Sampling

PICTURES = 256  # more than the classical back end remembers, so that each is new to it when its turn comes again
AT_ONCE, ONE_PICTURE, FIVE = "tools that answer at once", "classical, one picture", "classical, 5 programs a picture"

# Three tool calls each. In the memory job they take turns with programs that are refused, raise, and are stopped.
RUNS = "def answer(image):\n    return [compare(count(image, 'circle'), 'more', count(image, 'triangle')), {n}]\n"
OTHERS = [
    "import os\ndef answer(image):\n    return {n}\n",
    "def answer(image):\n    return find(image, 'circle')[{n} + 100]\n",
    "def answer(image):\n    return [exists(image, 'circle') for n in range({n} + 100)]\n",
]

T = TypeVar("T")


class AtOnce:
    """A detector that need not look."""

    def detect(self, image: Image.Image, name: str) -> list[Detection]:
        return [Detection(name, (0, 0, 8, 8))]


# --- jobs -------------------------------------------------------------------------------------------------------------


def throughput_figures(workers: int, programs: int, rounds: int) -> Iterator[Figure]:
    """Programs a second. In each round every case runs one batch, so that what else the machine does meets all."""
    drawn = pictures()
    cases: dict[str, tuple[Backends, int]] = {  # and programs a picture
        AT_ONCE: (Backends(detect=AtOnce()), programs),
        ONE_PICTURE: (classical(), programs),
        FIVE: (classical(), 5),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    executor = MontyExecutor(workers)
    runners = {name: Runner(backends, executor=executor) for name, (backends, _) in cases.items()}
    try:
        for number in range(rounds + 1):
            for name, (_, each) in cases.items():
                started = time.perf_counter()
                outcomes = run_all(runners[name], workers, programs, [RUNS], drawn, each)
                spent = time.perf_counter() - started
                if failed := [one for one in outcomes if one.verdict is not Verdict.RAN or len(one.events) != 3]:
                    raise DataError(f"{name}: {len(failed):,} programs did not run: {failed[0].message}")
                if number:  # the first warms up
                    found[name].append(programs / spent)
    finally:
        executor.close()
    for name, values in found.items():
        yield f"per_second@{name}", statistics.median(values), "programs/s", _spread(values), None


def memory_figures(workers: int, programs: int, marks: int = 10) -> Iterator[Figure]:
    """Memory that this process holds after each of `marks` equal batches, and what the last of them added up to."""
    drawn, held = pictures(), []
    with Runner(executor=MontyExecutor(workers)) as runner:
        for number in range(1, marks + 1):
            run_all(runner, workers, programs // marks, [*[RUNS] * 7, *OTHERS], drawn, 100)
            held.append(status_bytes("VmRSS") / 2**20)
            yield f"held@{number * (programs // marks):,} programs", held[-1], "MiB", None, None
    yield "grown", held[-1] - held[0], "MiB", None, f"after {programs // marks:,} programs, same run"


def forward_figures(
    model: str, run: Path, questions: int, detector: str, workers: int, owlv2_time: bool
) -> Iterator[Figure]:
    """Seconds from an encoded image and a question to the answer, both ways, one question an image, in turn.

    Neither way has seen the image before. Writing the program is not counted.
    """
    from bench.detector_cost import OWLV2, costing, owlv2  # torch
    from mmkd.synthesis.local_models import vlm

    found: dict[bytes, tuple[Turn, str]] = {}
    for record in jsonl(str(run / "records.jsonl")):
        if record.provenance.program is not None:
            found.setdefault(read_image(record.images[0]), (record.turns[0], record.provenance.program))
    asked = list(islice(found.items(), questions + 1))
    if len(asked) < 3:
        raise DataError(f"{run / 'records.jsonl'} has programs for {len(asked)} images; at least 3 are needed.")
    student = vlm(VlmSection(model=model, tokens=None, batch_size=1, license=None))
    student_seconds, program_seconds = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backends, _ = stack.enter_context(open_backends(ToolsSection(detector=detector), folder))
        if owlv2_time:
            backends = costing(backends, owlv2(folder))
        runner = stack.enter_context(Runner(backends, executor=MontyExecutor(workers)))
        for image, (turn, program) in asked:
            call = Call("forward", (turn,), (image,), Sampling(max_tokens=16))
            seconds, [answer] = timed(lambda call=call: student.generate([call]))
            if not isinstance(answer, Completion):
                raise DataError(f"{model} does not answer {turn.text!r}: {answer}")
            student_seconds.append(seconds)
            seconds, outcome = timed(
                lambda image=image, text=turn.text, program=program: runner.run(program, open_image(image), text)
            )
            if outcome.verdict is not Verdict.RAN:
                raise DataError(f"a verified program failed: {outcome.message} Give the --detector that the run had.")
            program_seconds.append(seconds)
    student_seconds, program_seconds = student_seconds[1:], program_seconds[1:]  # the first warms up
    ratios = [program / student for program, student in zip(program_seconds, student_seconds, strict=True)]
    case = f"program, {OWLV2 if owlv2_time else detector}"
    for name, values in (("student", student_seconds), (case, program_seconds)):
        values = [1000 * value for value in values]
        yield f"answer_time@{name}", statistics.median(values), "ms", _spread(values), None
    yield f"student_times_faster@{case}", statistics.median(ratios), "times", _spread(ratios), "same questions and run"


def false_figures(run: Path, seed: int, each: int, most: int, share: float) -> Iterator[Figure]:
    programs, drawn = accepted(run)
    with Runner() as runner:
        try_elsewhere(programs, drawn, runner, seed, each, most)
    units = {"tried": "programs", "untried": "programs", "false_accepts": "% of programs", "false_records": "% of told"}
    for kind, values in shares(programs, share).items():
        for what, value in values.items():
            yield f"{what}@{kind}", value, units[what], None, None


# --- what they share --------------------------------------------------------------------------------------------------


def pictures() -> list[Image.Image]:
    return [one.image() for one in scenes("train", PICTURES, 0, questions=1)]


def run_all(
    runner: Runner, workers: int, programs: int, sources: Sequence[str], drawn: Sequence[Image.Image], each: int
) -> list[Outcome]:
    """So many programs, no two alike, as many at once as there are workers; the last 1,000 outcomes.

    Args:
        sources: which take turns; each: programs a picture.
    """

    def run(number: int) -> Outcome:
        source = sources[number % len(sources)].replace("{n}", str(number))
        return runner.run(source, drawn[number // each % len(drawn)])

    last: list[Outcome] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, programs, 1000):  # a pool's queue would hold all the programs
            last = list(pool.map(run, range(start, min(programs, start + 1000))))
    return last


def timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(arguments: list[str], results: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.programs", description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    one = jobs.add_parser("throughput", help="programs of three tool calls a second")
    one.add_argument("--programs", type=int, default=5000, help="of a batch")
    one.add_argument("--rounds", type=int, default=5, help="batches of each case")
    one.add_argument("--workers", type=int, default=2)
    one = jobs.add_parser("memory", help="memory of the parent process")
    one.add_argument("--programs", type=int, default=100_000)
    one.add_argument("--workers", type=int, default=2)
    one = jobs.add_parser("forward", help="a student's answer against running the program")
    one.add_argument("model", help="release, model folder, run folder or hub id")
    one.add_argument("run", type=Path, help="folder of a finished run of mmkd programs")
    one.add_argument("--questions", type=int, default=200, help="each about an image of its own")
    one.add_argument("--detector", default="classical", help="as tools.detector of the run")
    one.add_argument(
        "--owlv2-time", action="store_true", help="each look takes the time of OWLv2 base, too (random weights)"
    )
    one.add_argument("--workers", type=int, default=2)
    one = jobs.add_parser("false_accepts", help="verified programs on new scenes")
    one.add_argument("run", type=Path, help="folder of a finished run of mmkd programs on scenes")
    one.add_argument("--seed", type=int, default=1_000, help="of the new scenes")
    one.add_argument("--scenes", type=int, default=40, help="for each program")
    one.add_argument("--most", type=int, default=4_000, help="scenes looked through for one that offers its question")
    one.add_argument("--share", type=float, default=0.05, help="of scenes that a program may be wrong on")
    one = jobs.add_parser("writing", help="samples of a writer, free and held to the grammar")
    one.add_argument("--writer", default="gguf:smollm2-135m")
    one.add_argument("--questions", type=int, default=20, help="different ones about scenes, all types alike")
    one.add_argument("--samples", type=int, default=5, help="of each question")
    one.add_argument("--temperature", type=float, default=0.5)
    one.add_argument("--seed", type=int, default=0, help="of scenes and samples")
    one.add_argument("--batch", type=int, default=20)
    asked = parser.parse_args(arguments)
    around = surroundings()  # before anything is measured: the commit that runs
    if asked.job == "throughput":
        figures = throughput_figures(asked.workers, asked.programs, asked.rounds)
    elif asked.job == "memory":
        figures = memory_figures(asked.workers, asked.programs)
    elif asked.job == "forward":
        figures = forward_figures(
            asked.model, asked.run, asked.questions, asked.detector, asked.workers, asked.owlv2_time
        )
    elif asked.job == "writing":
        figures = writing_figures(
            asked.writer, asked.questions, asked.samples, asked.temperature, asked.seed, asked.batch
        )
    else:
        figures = false_figures(asked.run, asked.seed, asked.scenes, asked.most, asked.share)
    for metric, value, unit, spread, against in figures:
        row = Row(
            bench=f"programs_{asked.job}",
            metric=metric,
            value=value,
            unit=unit,
            seeds=(getattr(asked, "seed", 0),),
            spread=spread,
            against=against,
            command=" ".join(["python -m bench.programs", *arguments]),
            config_hash=config_hash({name: str(value) for name, value in vars(asked).items()}),
            **around,
        )
        append([row], results)
        print(f"{metric:<44} {value:>12,.4g} {unit}" + (f" ± {spread:.2g}" if spread else ""), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
