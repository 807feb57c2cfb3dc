"""The command line: one command per job. Parses, calls, prints; torch is imported only by the commands that need it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmkd.errors import ConfigError, MmkdError

if TYPE_CHECKING:
    from mmkd.config.schema import Config
    from mmkd.config.vision_schema import VisionConfig

app = typer.Typer(
    name="mmkd",
    help="Distil big vision-language models into small ones that read each image as a handful of tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class RunsByDefault(TyperGroup):
    """A group in which anything that is no command of it, nor an option, is a CONFIG for `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


programs = typer.Typer(
    help="Programs over vision tools: sampled, run safely, verified. mmkd programs CONFIG is programs run CONFIG.",
    cls=RunsByDefault,
    no_args_is_help=True,
)
app.add_typer(programs, name="programs")
judge = typer.Typer(help="A local judge: its training records, and how far it can be trusted.", no_args_is_help=True)
app.add_typer(judge, name="judge")

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file, run folder, or packaged config such as demo/distill.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. student.voco.tokens=4.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last complete checkpoint.")]
Model = Annotated[str, typer.Argument(help="Folder of a model or release, or a hub id.")]
Tokens = Annotated[
    str | None, typer.Option(help="Tokens an image is read as, or full; all the model's compression tokens by default.")
]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a model, with or without a teacher."""
    _train(_load_run(config, overrides), resume)


@app.command()
def distill(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Distil the config's teacher into its student."""
    loaded = _load_run(config, overrides)
    if loaded.teacher is None:
        raise ConfigError(
            f"config: teacher is missing; distill needs one. Add e.g. teacher: {{kind: live, model: runs/teacher}}, "
            f"or use mmkd train. ({config})"
        )
    _train(loaded, resume)


@app.command()
def cache(
    config: ConfigPath,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Stop when size and time are known.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward of the teacher.")] = 16,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a file; the most that a kill can lose.")] = 256,
) -> None:
    """Ask the config's teacher about its data once and keep the answers; killed, the same command goes on."""
    from mmkd.config.schema import Config

    loaded = _load_run(config, overrides)
    if not isinstance(loaded, Config):
        raise ConfigError(f"mmkd cache is for vision-language models; {config} is of kind: vision.")
    if loaded.teacher is not None and loaded.teacher.endpoint is not None:
        if estimate:
            raise ConfigError(
                "--estimate times a teacher on this machine; limit a served one by teacher.endpoint.budget."
            )
        from mmkd.synthesis.served_teacher import cache_served

        return cache_served(loaded, shard_rows, typer.echo)
    from mmkd.train.cache import cache_teacher

    cache_teacher(loaded, batch_size, shard_rows, estimate, typer.echo)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, folder of a model or release, or a hub id.")],
    suite: Annotated[str | None, typer.Option(help="Suite below eval_suites, or a path; easyvqa by default.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token counts to score, comma-separated, e.g. 1,2,4,8,full; full by default.")
    ] = None,
    blind: Annotated[
        bool | None,
        typer.Option("--blind/--no-blind", help="Score without the images too, to see what language gives."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first n questions.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions in one batch, 64 by default; scores do not depend on it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results and samples; RUN/eval for a run.")] = None,
) -> None:
    """Score a model with lmms-eval; of a run, as its config's evaluate section says unless an option says other."""
    counts = None if tokens is None else _token_counts(tokens)
    from mmkd.evaluate.job import job_of

    job = job_of(model)
    asked = job.asked
    from mmkd.evaluate.suite import evaluate as run_suite

    scores = run_suite(
        model=job.model,
        suite=suite or asked.suite,
        tokens=counts or asked.tokens,
        blind=asked.blind if blind is None else blind,
        limit=limit or asked.limit,
        batch_size=batch_size or asked.batch_size,
        out=out or job.out,
    )
    typer.echo(json.dumps(scores, indent=2, default=str))


@app.command()
def release(
    run: Annotated[Path, typer.Argument(help="Run folder whose model is released.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    kind: Annotated[
        str, typer.Option("--format", help="mmkd (any model), or llava (stock LLaVA, for full-vision students).")
    ] = "mmkd",
) -> None:
    """Write a run's model as a folder that transformers loads without mmkd, verify it, add a model card."""
    if kind not in ("mmkd", "llava"):
        raise ConfigError(f"--format has {kind!r}; allowed: mmkd, llava.")
    from mmkd.release.bundle import release as make_release

    record = make_release(run, out, "llava" if kind == "llava" else "mmkd")
    largest = max(reading["difference"] for reading in record["logits"].values())
    typer.echo(f"{out}: verified without mmkd; the logits differ from the trained model's by at most {largest:.2g}")


@app.command()
def chat(
    model: Model,
    image: Annotated[list[Path] | None, typer.Option(help="Image to talk about; may be given several times.")] = None,
    tokens: Tokens = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
) -> None:
    """Talk to a model about images, in the terminal."""
    from mmkd.inference.chat import chat as talk

    talk(model, image or [], _token_count(tokens), answer_tokens)


@app.command()
def compress(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for one safetensors file an image.")],
    tokens: Tokens = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 16,
) -> None:
    """Compress images to files that a model answers from later; what is there already is skipped."""
    from mmkd.inference.compress import compress_files

    typer.echo(str(compress_files(model, images, out, _token_count(tokens), batch_size)))


@app.command()
def serve(
    model: Model,
    tokens: Tokens = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    image_cache: Annotated[int, typer.Option(min=1, help="Compressed images to remember.")] = 32,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host from which image URLs may be fetched; none by default.")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(help="Folder below which file:// images may be read; none by default.")
    ] = None,
) -> None:
    """Answer OpenAI-style chat completions about images, over HTTP."""
    from mmkd.inference.server import serve as run_server

    run_server(
        model, host, port, _token_count(tokens), image_cache, answer_tokens, allow_host, allow_folder, typer.echo
    )


@app.command()
def answer(config: ConfigPath, overrides: Overrides = None) -> None:
    """Have a model, served or not, answer the questions of records; the answers become new records."""
    from mmkd.config.load import load_as
    from mmkd.config.synthesis_schema import AnswerConfig
    from mmkd.synthesis.answering import answer_records

    typer.echo(str(answer_records(load_as(config, overrides or [], AnswerConfig))))


@app.command()
def select(config: ConfigPath, overrides: Overrides = None) -> None:
    """Keep the records that are worth training on: no near-duplicates, none that needs no image, balanced tasks."""
    from mmkd.config.load import load_as
    from mmkd.config.synthesis_schema import SelectConfig
    from mmkd.synthesis.selecting import select_records

    typer.echo(str(select_records(load_as(config, overrides or [], SelectConfig))))


@judge.command("records")
def records_of_judge(config: ConfigPath, overrides: Overrides = None) -> None:
    """Make answers of known quality into records on which mmkd train trains a judge."""
    from mmkd.config.judge_schema import JudgeConfig
    from mmkd.config.load import load_as
    from mmkd.synthesis.judge_jobs import judge_records

    typer.echo(judge_records(load_as(config, overrides or [], JudgeConfig)))


@judge.command("calibrate")
def calibrate_judge(config: ConfigPath, overrides: Overrides = None) -> None:
    """Hold the config's judge against the labels of answers whose pictures it did not learn from."""
    from mmkd.config.judge_schema import JudgeConfig
    from mmkd.config.load import load_as
    from mmkd.synthesis.judge_jobs import judge_calibration

    loaded = load_as(config, overrides or [], JudgeConfig)
    judge_calibration(loaded)
    typer.echo(str(Path(loaded.out) / "calibration.json"))


@app.command()
def compete(config: ConfigPath, overrides: Overrides = None) -> None:
    """Rounds of competitive distillation: learn, assess, ask anew where the student fails; killed, it goes on."""
    from mmkd.config.compete_schema import CompeteConfig
    from mmkd.config.load import load_as
    from mmkd.synthesis.competing.compete import compete as run_competition

    typer.echo(str(run_competition(load_as(config, overrides or [], CompeteConfig))))


@app.command()
def evolve(config: ConfigPath, overrides: Overrides = None) -> None:
    """Let the questions of records grow in rounds (MMEvol), each version checked; killed, the same command goes on."""
    from mmkd.config.evolve_schema import EvolveConfig
    from mmkd.config.load import load_as
    from mmkd.synthesis.evolving.run import evolve as run_evolution

    typer.echo(str(run_evolution(load_as(config, overrides or [], EvolveConfig))))


@app.command("report")
def report_page(
    folder: Annotated[Path, typer.Argument(help="Of a run or a data engine; the page is FOLDER/report.html.")],
) -> None:
    """Write one HTML page of a run, or of a folder of `mmkd programs`, `mmkd compete` or `mmkd evolve`."""
    from mmkd.report.build import report

    typer.echo(report(folder))


@app.command()
def demo(
    full: Annotated[bool, typer.Option("--full", help="The long budget: up to 45 minutes on two cores.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the whole demo.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/demo or runs/demo-full by default.")] = None,
) -> None:
    """Train a teacher, distil it, score it and release it, on real parts, on a CPU."""
    from mmkd.demo import demo as run_demo

    run_demo(full=full, seed=seed, out=out)


@programs.command("run")
def run_programs(config: ConfigPath, overrides: Overrides = None) -> None:
    """Have a model write programs for the questions of records; those that hold give the records rationales."""
    from mmkd.config.load import load_as
    from mmkd.config.programs_schema import ProgramsConfig
    from mmkd.synthesis.programs.making.rounds import make_rounds

    typer.echo(str(make_rounds(load_as(config, overrides or [], ProgramsConfig))))


@programs.command("check")
def check_program(
    file: Annotated[Path, typer.Argument(help="File with a program: Python functions, one of them answer(image).")],
    image: Annotated[Path, typer.Option(help="Picture to run it on.")],
    question: Annotated[str, typer.Option(help="The question it answers; for the output only.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run one program in the sandbox; print verdict, reason and trace. Exit code 1 unless it ran to an answer."""
    from mmkd.synthesis.programs.check_file import check_file, in_words

    outcome = check_file(file, image, question)
    typer.echo(json.dumps(outcome.to_dict()) if as_json else in_words(outcome))
    raise typer.Exit(0 if outcome.reason is None else 1)


@app.command()
def doctor() -> None:
    """Show what this machine has, and how to install what it lacks."""
    from mmkd.doctor import doctor as examine

    raise typer.Exit(examine())


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Assets to bring; all by default.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every byte of what is there, not only its size.")
    ] = False,
) -> None:
    """Bring the demo's data and weights into the cache folder; broken ones are fetched again."""
    from mmkd import assets as store

    for name in names or store.ASSETS:
        if verify and name in store.ASSETS and not store.is_intact(store.ASSETS[name]):
            store.fetch(store.ASSETS[name])
        place = store.path(name)
        typer.echo(f"{name:<20} {store.ASSETS[name].license:<12} {place}")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="train, vision, answer, select, compete, evolve or programs.")] = "train",
    out: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
) -> None:
    """Write the JSON schema of a kind of config, for editors."""
    from mmkd.config.kinds import KINDS
    from mmkd.config.load import json_schema

    if kind not in KINDS:
        raise ConfigError(f"schema: no kind of config is called {kind!r}; allowed: {', '.join(KINDS)}.")
    text = json.dumps(json_schema(KINDS[kind]), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text)


def _load_run(config: str, overrides: list[str] | None) -> Config | VisionConfig:
    from mmkd.config.load import load_run

    return load_run(config, overrides or [])


def _train(config: Config | VisionConfig, resume: bool) -> None:
    from mmkd.config.schema import Config

    if isinstance(config, Config):
        from mmkd.train.run import train as run_training

        folder = run_training(config, resume)
    else:
        from mmkd.vision_distill.run import train as run_vision_training

        folder = run_vision_training(config, resume)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(folder)


def _token_counts(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for item in text.split(","):
        item = item.strip()
        if item != "full" and not (item.isdecimal() and int(item) > 0):
            raise ConfigError(
                f"--tokens has {item!r}; allowed: whole numbers from 1 and the word full, e.g. 1,2,4,full."
            )
        counts.append(item if item == "full" else int(item))
    return counts


def _token_count(text: str | None) -> Any:
    if text is None:
        return None
    counts = _token_counts(text)
    if len(counts) != 1:
        raise ConfigError(f"--tokens has {text!r}; one count is meant here, e.g. 1 or full.")
    return counts[0]


def _without_local_rank(arguments: list[str]) -> list[str]:
    """Drop `--local_rank=0`, which the deepspeed launcher puts before the arguments; LOCAL_RANK says the same."""
    return [item for item in arguments if not item.startswith(("--local_rank=", "--local-rank="))]


def main() -> None:
    """Entry point. A user's error is printed as its text and gives exit code 2; a traceback means a defect of mmkd."""
    try:
        app(args=_without_local_rank(sys.argv[1:]), prog_name="mmkd")
    except MmkdError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from None
