"""The page of a training run: scores, curves, answers, attention, parts, config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mmkd.errors import MmkdError
from mmkd.report.answers import sample_answers
from mmkd.report.curves import headline_metric, milliseconds, score_charts, training_charts
from mmkd.report.page import Numbers
from mmkd.report.pictures import data_uri, easyvqa_pictures, picture_of
from mmkd.report.plots import amount, percent, plain
from mmkd.report.run_folder import RunFolder, Scored, read_scored, reading_name

if TYPE_CHECKING:
    from PIL import Image

QUESTION = "what color is the shape?"
PICTURES = 4  # with attention maps
COSTS = ("image_tokens", "prefill_tokens", "seconds_per_question")
NAMES = {
    "image_tokens": "image tokens",
    "prefill_tokens": "prompt tokens",
    "seconds_per_question": "time for a question",
}


def run_page(run: RunFolder) -> dict[str, Any]:
    """What run.html.jinja shows. What a run lacks (scores, compression tokens, a teacher) is left out, with a note."""
    teacher = _teacher_folder(run)
    teachers = read_scored(teacher.parent / "eval", run) if teacher is not None else []
    suites, pictures = [], []
    for name in dict.fromkeys(one.suite for one in run.scored):
        suite, seen = _suite(run, name, teachers)
        suites.append(suite)
        pictures += seen
    models = [_model_table(run, "student" if run.config.get("teacher") else "model", run.model, trained=True)]
    if teacher is not None:
        models.append(_model_table(run, "teacher", teacher, trained=False))
    models = [model for model in models if model]
    looked, grid, costs, tiles = _of_the_model(run, pictures or easyvqa_pictures(PICTURES))
    environment = dict(run.environment)
    versions = environment.pop("versions", None)
    if isinstance(versions, dict):
        environment["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items())
    return {
        "sentence": _sentence(models),
        "facts": _facts(run, suites, teachers, models, costs),
        "suites": suites,
        "costs": costs,
        "cost_question": QUESTION,
        "cost_tiles": tiles,
        "training": training_charts(run.metrics),
        "looked": looked,
        "grid": grid,
        "models": models,
        "environment": [(name.replace("_", " "), str(value)) for name, value in environment.items()],
        "config": run.config_text,
    }


def _teacher_folder(run: RunFolder) -> Path | None:
    """The teacher's model folder: as the config names it, or beside the run where both were moved together."""
    section = run.config.get("teacher")
    model = section.get("model") if isinstance(section, dict) else None
    if not isinstance(model, str):
        return None
    named = Path(model)
    for folder in (named, run.path.resolve().parent / named.parent.name / named.name):
        if (folder / "config.json").is_file():
            return folder
    run.notes.append(f"teacher: its folder {model} is not there, so its parts, scores and answers are left out.")
    return None


def _suite(run: RunFolder, name: str, teachers: Sequence[Scored]) -> tuple[dict[str, Any], list[Image.Image]]:
    """What the page shows of one suite, and pictures of its questions."""
    mine = [one for one in run.scored if one.suite == name]
    teacher = next((one for one in teachers if (one.suite, one.reading) == (name, "full")), None)
    blind = [one for one in teachers if (one.suite, one.reading) == (name, "blind")]
    even, missed = run.try_to(f"answers on {name}", lambda: sample_answers(mine, teacher), ([], []))
    if not even:
        run.notes.append(f"answers on {name}: the eval folder holds no samples of it.")
    cards, pictures = [], []
    for part in (even, missed):
        cards.append([])
        for asked in part:
            picture = picture_of(asked.doc)
            if picture is not None:
                pictures.append(picture)
            cards[-1].append(vars(asked) | {"picture": data_uri(picture) if picture is not None else ""})
    columns = [(reading_name(one.reading), one) for one in mine]
    columns += [("teacher", teacher)] if teacher is not None else []
    columns += [("teacher, blind", one) for one in blind]
    metrics = list(dict.fromkeys(metric for one in mine for metric in one.scores))
    rows = [[NAMES.get(m, m.replace("_", " ")), *(_score(m, one.scores.get(m)) for _, one in columns)] for m in metrics]
    suite = {
        "name": name,
        "charts": score_charts(mine, teacher),
        "table": Numbers(["image tokens read", *(head for head, _ in columns)], rows),
        "even": cards[0],
        "missed": cards[1],
        "missed_by": reading_name(mine[0].reading),
    }
    return suite, pictures


def _score(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric == "seconds_per_question":
        return milliseconds(value)
    return percent(round(value, 4)) if metric not in COSTS and 0 <= value <= 1 else f"{value:,.1f}"


def _model_table(run: RunFolder, name: str, folder: Path, trained: bool) -> dict[str, Any] | None:
    from mmkd.report.parts import model_parts

    if not folder.is_dir():
        run.notes.append(f"parts of the {name}: {folder.name}/ is not there yet; the run writes it when it ends.")
        return None
    stages = run.config.get("stages")
    stages = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    parts = run.try_to(f"parts of the {name}", lambda: model_parts(folder, stages), None)
    return {"name": name, "parts": parts, "trained": trained} if parts else None


def _of_the_model(run: RunFolder, images: list[Image.Image]) -> tuple[list[Any], str, Numbers | None, int]:
    """Attention maps, the grid they are on, counted costs, and the tiles they are of: all that needs the weights."""
    if not (run.model / "config.json").is_file():
        return [], "", None, 1
    from mmkd.compose import load
    from mmkd.evaluate.costs import ask, count_costs
    from mmkd.report.attention import grid_of, look

    def loaded() -> Any:
        try:
            return load(run.model, "auto")  # in the dtype of its file: fp32 would double the K,V of bf16
        except (MmkdError, SafetensorError) as error:
            raise ValueError(error) from error

    composed = run.try_to("attention maps and costs", loaded, None)
    if composed is None:
        return [], "", None, 1
    model, processor = composed.model.eval(), composed.processor
    most = model.config.voco_tokens
    counts = [*(2**i for i in range(most.bit_length())), "full"] if most else ["full"]
    costs = run.try_to("costs", lambda: count_costs(model, ask(processor, QUESTION), counts), {})
    if not most:
        run.notes.append("attention maps: the model has no compression tokens.")
        return [], "", _cost_table(costs), processor.tiles
    different = list({image.tobytes(): image for image in images}.values())[:PICTURES]
    if not different:
        run.notes.append("attention maps: no picture is at hand; bring EasyVQA's with: mmkd assets easyvqa")
    looked = [
        run.try_to("attention maps", lambda image=image, i=i: look(model, processor, image, f"picture-{i}"), None)
        for i, image in enumerate(different)
    ]
    grid = grid_of(model)
    run.notes[:] = dict.fromkeys(run.notes)  # the same reason once
    shape = f"{grid[0]} × {grid[1]}" if grid else ""
    return [one for one in looked if one], shape, _cost_table(costs), processor.tiles


def _cost_table(costs: dict[str, Any]) -> Numbers | None:
    if not costs:
        return None
    rows = [
        ["tokens in the cache", *(str(cost.image_tokens) for cost in costs.values())],
        ["K,V of a cached image", *(f"{cost.kv_bytes / 1024:,.1f} KiB" for cost in costs.values())],
        ["encoding it", *(f"{cost.encode_flops / 1e6:,.0f} MFLOP" for cost in costs.values())],
        ["prefill of a question on it", *(f"{cost.prefill_flops / 1e6:,.0f} MFLOP" for cost in costs.values())],
        ["each new token", *(f"{cost.decode_flops / 1e6:,.0f} MFLOP" for cost in costs.values())],
    ]
    return Numbers(["image read as", *(reading_name(name) for name in costs)], rows)


def _sentence(models: list[dict[str, Any]]) -> str:
    if not models:
        return ""
    return " → ".join(
        f"{part.source or part.name} ({amount(part.parameters)})"
        for part in models[0]["parts"]
        if part.name in ("vision", "projector", "language", "voco")
    )


def _facts(
    run: RunFolder,
    suites: list[dict[str, Any]],
    teachers: Sequence[Scored],
    models: list[dict[str, Any]],
    costs: Numbers | None,
) -> list[tuple[str, str]]:
    """The few numbers that a reader looks for first."""
    facts = []
    for suite in suites[:1]:
        mine = [one for one in run.scored if one.suite == suite["name"] and one.reading != "blind"]
        metric = headline_metric(mine)
        shown = {one.reading: one for one in mine if metric in one.scores}
        for reading in dict.fromkeys((next(iter(shown), ""), "full")):
            if reading in shown:
                facts.append(
                    (_score(metric, shown[reading].scores[metric]), f"{suite['name']}, {reading_name(reading)}")
                )
        teacher = next((one for one in teachers if (one.suite, one.reading) == (suite["name"], "full")), None)
        if teacher is not None and metric in teacher.scores:
            facts.append((_score(metric, teacher.scores[metric]), f"{suite['name']}, teacher"))
    for model in models:
        total = sum(part.parameters for part in model["parts"])
        facts.append((f"{total / 1e6:,.1f} M", f"parameters, {model['name']}"))
    if costs and len(costs.heads) > 2:
        facts.append((costs.rows[1][1], f"a cached image, {costs.heads[1]} (full {costs.rows[1][-1]})"))
    if run.metrics and not suites:
        last = run.metrics[-1]
        facts.append((plain(last.values.get("loss", float("nan"))), f"loss at step {last.step}"))
    return facts
