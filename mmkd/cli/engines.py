"""The data engines: answer, select, compete, evolve, programs, judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mmkd.cli.options import ConfigPath, Overrides

app = typer.Typer()


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
    config: Annotated[
        Path | None, typer.Option(help="A config of mmkd programs, whose tools and limits it runs with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run one program in the sandbox; print verdict, reason and trace. Exit code 1 unless it ran to an answer."""
    from mmkd.config.load import load_as
    from mmkd.config.programs_schema import ProgramsConfig
    from mmkd.synthesis.programs.making.check_file import check_file, in_words

    outcome = check_file(file, image, question, load_as(config, [], ProgramsConfig) if config else None)
    typer.echo(json.dumps(outcome.to_dict()) if as_json else in_words(outcome))
    raise typer.Exit(0 if outcome.reason is None else 1)


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
