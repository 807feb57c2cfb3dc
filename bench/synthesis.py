"""What the LLM layer costs: its rate against a bare client's, and the memory of whoever asks 100,000 requests.

    python -m bench.synthesis rate runs/scenes/read/model    # serves it; on an idle machine
    python -m bench.synthesis memory

`rate` starts `mmkd serve` on the model and asks about pictures of scenes, every request once. First a bare client (the
openai package, so many calls at once as a case says, replies thrown away) finds the concurrency at which the server is
fastest; that rate is the server's own. There the bare client and mmkd's (an Asker on an Endpoint and a Store, which
checks, counts and keeps every reply before it hands it on) take turns, on requests that nobody has asked yet. A ratio
is of one turn; both clients share the machine's cores with the server.

`memory` has an Asker answer 100,000 requests through a back end of this process that replies at once, with its store
on disk, and reads the resident memory on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import openai
import psutil

from bench.rows import RESULTS, Row, append, config_hash, surroundings
from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.data.scenes import scenes
from mmkd.errors import DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Call
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.messages import to_messages
from mmkd.synthesis.requests import Completion, Request, Sampling, Usage
from mmkd.synthesis.store import Store

CONCURRENCIES = [1, 2, 4, 8, 16, 32]
PICTURES = 16  # fewer than a server remembers, so that both clients meet a server that knows them all
ANSWER = 8  # tokens


def requests(name: str, count: int, pictures: Sequence[bytes]) -> Iterator[Request]:
    """`count` different questions about the pictures in turn; another name gives others."""
    sampling = Sampling(max_tokens=ANSWER)
    for number in range(count):
        turns = (Turn("user", f"{name}, question {number}: what is there?"),)
        images = (pictures[number % len(pictures)],) if pictures else ()
        yield Request(f"{name}-{number}", turns, images, sampling, may_be_cut=True)


# --- rate -------------------------------------------------------------------------------------------------------------


@contextmanager
def served(model: str, log: Path) -> Iterator[EndpointSection]:
    """`mmkd serve` on the model, on a free port of this machine. Raises DataError where it does not start."""
    command = [sys.executable, "-u", "-m", "mmkd", "serve", model, "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        while not (said := re.search(r"^(\S+) at (http://\S+/v1)", log.read_text(), re.MULTILINE)):
            if process.poll() is not None:
                raise DataError(f"mmkd serve {model} ended: {log.read_text().strip()[-400:]}")
            time.sleep(0.1)
        yield EndpointSection(url=said[2], model=said[1], license="MIT")
    finally:
        process.terminate()
        process.wait()


def bare_rate(section: EndpointSection, concurrency: int, asked: Sequence[Request]) -> float:
    """Replies a second of the openai client alone. Raises openai's errors."""

    async def work() -> float:
        client = openai.AsyncOpenAI(base_url=section.url, api_key="none", max_retries=0, timeout=section.timeout)
        # Before the clock starts: it is the server's own rate that is looked for, so this client does the least it can.
        waiting = iter([to_messages(one.turns, one.images) for one in asked])

        async def worker() -> None:
            for messages in waiting:
                arguments: dict[str, Any] = {"messages": messages, "seed": asked[0].sampling.seed}
                await client.chat.completions.create(
                    model=section.model, temperature=0.0, max_tokens=ANSWER, **arguments
                )

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
        await client.close()
        return len(asked) / seconds

    return asyncio.run(work())


def asker_rate(section: EndpointSection, concurrency: int, asked: Sequence[Request], folder: Path) -> float:
    """Records a second of mmkd's client, from the first request to the last answer kept. Raises DataError where one
    has no answer: a rate of errors is none."""
    backend = Endpoint(section.model_copy(update={"concurrency": concurrency}))
    with Asker(backend, Store(folder)) as asker:
        started = time.perf_counter()
        done = sum(answer.done for answer in asker.answer(asked))
        seconds = time.perf_counter() - started
    if done < len(asked):
        raise DataError(f"{len(asked) - done} of {len(asked)} requests have no answer; see {folder}.")
    return len(asked) / seconds


def rates(model: str, count: int, rounds: int, folder: Path) -> tuple[dict[int, float], int, list[float], list[float]]:
    """Replies a second by concurrency, the best concurrency, and there the rates of both clients by round."""
    pictures = [one.png() for one in scenes("train", PICTURES, 0, 2)]
    with served(model, folder / "server.log") as section:
        bare_rate(section, 1, list(requests("first", PICTURES, pictures)))  # the server meets every picture
        by_concurrency = {
            number: bare_rate(section, number, list(requests(f"sweep {number}", count, pictures)))
            for number in CONCURRENCIES
        }
        best = max(by_concurrency, key=lambda number: by_concurrency[number])
        bare: list[float] = []
        ours: list[float] = []
        for number in range(rounds):
            turns = [
                lambda asked: bare.append(bare_rate(section, best, asked)),
                lambda asked, store=folder / f"store-{number}": ours.append(asker_rate(section, best, asked, store)),
            ]
            # Who begins changes, so that neither gets the better half of a machine that warms up or slows down.
            for turn, take in enumerate(reversed(turns) if number % 2 else turns):
                take(list(requests(f"round {number}.{turn}", count, pictures)))
    return by_concurrency, best, bare, ours


# --- memory -----------------------------------------------------------------------------------------------------------


class Echo:
    """See `Backend`: says the question again, at once."""

    model, license, concurrency = "echo", "MIT", 32
    extra_body: ClassVar[dict[str, Any]] = {}

    async def complete(self, call: Call) -> Completion:
        await asyncio.sleep(0)
        return Completion(call.turns[-1].text, Usage(8, 8), "stop", call.id, self.model)

    async def close(self) -> None:
        pass


def memory(count: int, points: int, folder: Path) -> dict[int, float]:
    """MiB held by this process, by how many answers it took."""
    found: dict[int, float] = {}
    with Asker(Echo(), Store(folder)) as asker:
        answers = asker.answer(requests("memory", count, ()))
        for point in range(1, points + 1):
            taken = sum(1 for _ in islice(answers, count // points))
            found[taken * point] = resident()
        answers.close()
    return found


def resident() -> float:
    """Resident memory of this process in MiB."""
    return psutil.Process().memory_info().rss / 2**20


# --- rows -------------------------------------------------------------------------------------------------------------

Figure = tuple[str, float, str, float | None, str | None]  # metric, value, unit, spread, against


def rate_figures(by_concurrency: dict[int, float], best: int, bare: list[float], ours: list[float]) -> list[Figure]:
    ratios = [own / other for own, other in zip(ours, bare, strict=True)]
    found: list[Figure] = [
        (f"server_rate@concurrency={number}", rate, "replies/s", None, None) for number, rate in by_concurrency.items()
    ]
    client = f"the bare openai client, concurrency {best}"
    return [
        *found,
        ("rate@bare", statistics.median(bare), "replies/s", _spread(bare), None),
        ("rate@mmkd", statistics.median(ours), "replies/s", _spread(ours), None),
        ("rate_ratio@mmkd", statistics.median(ratios), "of bare", _spread(ratios), client),
    ]


def memory_figures(held: dict[int, float]) -> list[Figure]:
    found: list[Figure] = [(f"resident@{taken:,} answers", value, "MiB", None, None) for taken, value in held.items()]
    first, last = min(held), max(held)
    return [*found, ("growth@all", held[last] - held[first], "MiB", None, f"after {first:,} answers")]


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.synthesis", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    jobs = parser.add_subparsers(dest="job", required=True)
    rate = jobs.add_parser("rate", help="of mmkd's client against a bare one")
    rate.add_argument("model", help="model folder to serve")
    rate.add_argument("--count", type=int, default=400, help="requests of a turn")
    rate.add_argument("--rounds", type=int, default=5, help="turns of each client")
    kept = jobs.add_parser("memory", help="of the process that asks")
    kept.add_argument("--count", type=int, default=100_000, help="requests")
    kept.add_argument("--points", type=int, default=10, help="readings on the way")
    asked = parser.parse_args(arguments)
    around = surroundings()  # before anything is measured: the commit that runs
    with tempfile.TemporaryDirectory() as folder:
        if asked.job == "rate":
            figures = rate_figures(*rates(asked.model, asked.count, asked.rounds, Path(folder)))
            settings = {"model": asked.model, "count": asked.count, "rounds": asked.rounds}
            command = f"python -m bench.synthesis rate {asked.model} --count {asked.count} --rounds {asked.rounds}"
        else:
            # In a process of its own: this one has loaded torch to tell what it runs on.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                held = pool.submit(memory, asked.count, asked.points, Path(folder)).result()
            figures = memory_figures(held)
            settings = {"count": asked.count, "points": asked.points}
            command = f"python -m bench.synthesis memory --count {asked.count} --points {asked.points}"
    rows = [
        Row(f"synthesis_{asked.job}", *figure[:3], (0,), *figure[3:], command, config_hash(settings), **around)
        for figure in figures
    ]
    append(rows, asked.results)
    for row in rows:
        print(f"{row.metric:<32} {row.value:>12,.3f} {row.unit}" + (f" ± {row.spread:.2g}" if row.spread else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
